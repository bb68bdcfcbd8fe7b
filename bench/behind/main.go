// A gRPC service that answers every call with the same message, given in hex: what stands behind the edges while they
// are measured. It is not measured itself, and cheap so that the machine is left to what is. Prints its port and serves
// until its stdin ends.
package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"

	"google.golang.org/grpc"
)

// wire passes messages on as they are.
type wire struct{}

func (wire) Marshal(message any) ([]byte, error) { return message.([]byte), nil }
func (wire) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}
func (wire) Name() string { return "proto" }

// HealthCheckResponse{status: SERVING}
var healthy = []byte{8, 1}

func main() {
	answer, err := hex.DecodeString(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	handle := func(_ any, stream grpc.ServerStream) error {
		var request []byte
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		if method, _ := grpc.MethodFromServerStream(stream); strings.HasPrefix(method, "/grpc.health.") {
			return stream.SendMsg(healthy)
		}
		return stream.SendMsg(answer)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnknownServiceHandler(handle), grpc.ForceServerCodec(wire{}))
	go func() { log.Fatal(server.Serve(listener)) }()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	io.Copy(io.Discard, os.Stdin)
}
