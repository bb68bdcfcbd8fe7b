package main

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

const method = "/users.v1.UserService/GetUser"

// wire passes messages on as they are: two fields are no reason for generated code.
type wire struct{}

func (wire) Marshal(message any) ([]byte, error) { return message.([]byte), nil }
func (wire) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (wire) Name() string { return "proto" }

// GetUserRequest{id: "ada"}
var request = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "ada")

type caller struct {
	conn  *grpc.ClientConn
	notes *attempts
}

// call returns the name of the user that came back, which is the address of the instance that answered.
func (c *caller) call(timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var answer []byte
	if err := c.conn.Invoke(ctx, method, request, &answer, grpc.ForceCodec(wire{})); err != nil {
		return "", err
	}
	return name(answer), nil
}

// name reads User.name, the second field.
func name(user []byte) string {
	for len(user) > 0 {
		number, kind, n := protowire.ConsumeTag(user)
		if n < 0 {
			return ""
		}
		user = user[n:]
		if number == 2 {
			text, _ := protowire.ConsumeString(user)
			return text
		}
		if n = protowire.ConsumeFieldValue(number, kind, user); n < 0 {
			return ""
		}
		user = user[n:]
	}
	return ""
}

func (c *caller) ready(patience time.Duration) (err error) {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err = c.call(time.Second); err == nil {
			c.notes.take()
			return nil
		}
	}
	return err
}

// steady is a load on a schedule. Each call is noted as [due, begun, ended, code, instance], in nanoseconds of the wall clock.
type steady struct {
	caller *caller
	over   chan struct{}
	paced  sync.WaitGroup
	calls  sync.WaitGroup
	lock   sync.Mutex
	ended  [][5]any
}

func (c *caller) start(rate float64) *steady {
	s := &steady{caller: c, over: make(chan struct{})}
	s.paced.Add(1)
	go s.pace(time.Duration(float64(time.Second) / rate))
	return s
}

func (s *steady) pace(every time.Duration) {
	defer s.paced.Done()
	for due := time.Now(); ; due = due.Add(every) {
		select {
		case <-s.over:
			return
		case <-time.After(time.Until(due)):
		}
		s.calls.Add(1)
		go s.one(due)
	}
}

func (s *steady) one(due time.Time) {
	defer s.calls.Done()
	begun := time.Now().UnixNano()
	instance, err := s.caller.call(time.Second)
	end := time.Now().UnixNano()
	s.lock.Lock()
	s.ended = append(s.ended, [5]any{due.UnixNano(), begun, end, status.Code(err).String(), instance})
	s.lock.Unlock()
}

func (s *steady) stop() map[string]any {
	close(s.over)
	s.paced.Wait()
	s.calls.Wait()
	return map[string]any{"calls": s.ended, "attempts": s.caller.notes.take()}
}

// closed makes calls as fast as they are answered, so many at once, and tells what the process spent on them.
func (c *caller) closed(calls, atOnce int) map[string]any {
	var failed, begun atomic.Int64
	var group sync.WaitGroup
	before, began := spent(), time.Now()
	for range atOnce {
		group.Go(func() {
			for begun.Add(1) <= int64(calls) {
				if _, err := c.call(10 * time.Second); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	group.Wait()
	wall := time.Since(began)
	return map[string]any{"cpu_ns": spent() - before, "wall_ns": wall.Nanoseconds(), "calls": calls, "failed": failed.Load()}
}

func spent() int64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fail(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}
