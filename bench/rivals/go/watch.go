package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

// watch makes a connection for each line on stdin, and tells after how long it was ready and when it was seen to be gone.
func watch(address string) {
	out, lines := json.NewEncoder(os.Stdout), bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		begun := time.Now()
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			fail(err)
		}
		made := time.Since(begun)
		conn.Connect()
		for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
			conn.WaitForStateChange(context.Background(), state)
		}
		ready := time.Since(begun)
		conn.WaitForStateChange(context.Background(), connectivity.Ready)
		gone := time.Now().UnixNano()
		conn.Close()
		tell(out, map[string]any{"made": made.Nanoseconds(), "ready": ready.Nanoseconds(), "gone": gone})
	}
}
