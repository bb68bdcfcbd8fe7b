// A gRPC client in Go that the bench compares with ours: grpc-go with the stock etcd resolver, go-zero's zrpc client,
// or a raw connection. It calls GetUser as it is told to over stdin, and answers with one line of JSON each time.
//
//	rivals raw ADDRESS | etcd ETCD PREFIX | zero ETCD KEY
//	rivals watch ADDRESS
//
// Orders: "start RATE" begins calls on a fixed schedule that waits for no answer, each with a deadline of a second;
// "stop" ends them, waits for the last, and tells all; "closed CALLS AT_ONCE" makes so many calls, as fast as they go.
// To "watch", any line is an order to make one connection and tell how long it lived (bench/limits/connection.py).
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fail(fmt.Errorf("usage: rivals raw ADDRESS | etcd ETCD PREFIX | zero ETCD KEY"))
	}
	if os.Args[1] == "watch" {
		watch(os.Args[2])
		return
	}
	// Attempts are noted only where they are asked for: it costs the calls something.
	notes := &attempts{on: os.Getenv("RIVALS_NOTE") != ""}
	conn, err := open(os.Args[1], os.Args[2:], notes)
	if err != nil {
		fail(err)
	}
	c := &caller{conn: conn, notes: notes}
	if err := c.ready(10 * time.Second); err != nil {
		fail(err)
	}
	out := json.NewEncoder(os.Stdout)
	tell(out, map[string]any{"ready": true})
	var load *steady
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		switch {
		case len(words) == 2 && words[0] == "start":
			load = c.start(number(words[1]))
			tell(out, map[string]any{"started": true})
		case len(words) == 1 && words[0] == "stop" && load != nil:
			tell(out, load.stop())
			load = nil
		case len(words) == 3 && words[0] == "closed":
			tell(out, c.closed(int(number(words[1])), int(number(words[2]))))
		default:
			fail(fmt.Errorf("no such order: %q", lines.Text()))
		}
	}
}

func tell(out *json.Encoder, news any) {
	if err := out.Encode(news); err != nil {
		fail(err)
	}
}

func number(word string) float64 {
	var n float64
	if _, err := fmt.Sscan(word, &n); err != nil {
		fail(err)
	}
	return n
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "rivals:", err)
	os.Exit(1)
}
