package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/stat"
	"github.com/zeromicro/go-zero/zrpc"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/stats"
)

// Turns, and the retries of gRFC A6: what its documentation gives to those who ask for more than the default.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}], "retryPolicy": {
	"maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "1s", "backoffMultiplier": 2,
	"retryableStatusCodes": ["UNAVAILABLE"]}}]}`

// open makes the connection of a kind: raw ADDRESS, etcd ETCD PREFIX, or zero ETCD KEY.
func open(kind string, words []string, notes *attempts) (*grpc.ClientConn, error) {
	// go-zero writes to stdout once a minute wherever it is linked in, and there our answers stand.
	logx.Disable()
	stat.DisableLog()
	insecurely := grpc.WithTransportCredentials(insecure.NewCredentials())
	options := []grpc.DialOption{}
	if notes.on {
		options = append(options, grpc.WithStatsHandler(notes))
	}
	switch {
	case kind == "raw":
		return grpc.NewClient(words[0], append(options, insecurely)...)
	case kind == "etcd" && len(words) == 2:
		client, err := clientv3.New(clientv3.Config{Endpoints: words[:1], DialTimeout: 5 * time.Second})
		if err != nil {
			return nil, err
		}
		found, err := resolver.NewBuilder(client)
		if err != nil {
			return nil, err
		}
		options = append(options, insecurely, grpc.WithResolvers(found), grpc.WithDefaultServiceConfig(serviceConfig))
		return grpc.NewClient("etcd:///"+words[1], options...)
	case kind == "zero" && len(words) == 2:
		return zero(words[0], words[1], options)
	}
	return nil, fmt.Errorf("no such kind: %s %q", kind, words)
}

// zero makes a client of zrpc with its own defaults: nearest of two choices, breaker, tracing, its timeouts.
func zero(etcd, key string, options []grpc.DialOption) (*grpc.ClientConn, error) {
	var config zrpc.RpcClientConf
	if err := conf.FillDefault(&config); err != nil {
		return nil, err
	}
	config.Etcd = discov.EtcdConf{Hosts: []string{etcd}, Key: key}
	given := []zrpc.ClientOption{}
	for _, option := range options {
		given = append(given, zrpc.WithDialOption(option))
	}
	client, err := zrpc.NewClient(config, given...)
	if err != nil {
		return nil, err
	}
	return client.Conn(), nil
}

// attempts notes when an attempt left for which address: of a server that was killed, only its callers can tell.
type attempts struct {
	on   bool
	lock sync.Mutex
	seen [][2]any
}

func (a *attempts) take() [][2]any {
	a.lock.Lock()
	defer a.lock.Unlock()
	seen := a.seen
	a.seen = nil
	return seen
}

func (a *attempts) TagRPC(c context.Context, _ *stats.RPCTagInfo) context.Context   { return c }
func (a *attempts) TagConn(c context.Context, _ *stats.ConnTagInfo) context.Context { return c }
func (a *attempts) HandleConn(context.Context, stats.ConnStats)                     {}

func (a *attempts) HandleRPC(_ context.Context, event stats.RPCStats) {
	if header, ok := event.(*stats.OutHeader); ok && header.RemoteAddr != nil {
		now := time.Now().UnixNano()
		a.lock.Lock()
		a.seen = append(a.seen, [2]any{now, header.RemoteAddr.String()})
		a.lock.Unlock()
	}
}
