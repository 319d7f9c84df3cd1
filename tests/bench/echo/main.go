// Command echo sends back what it hears on port 9000, on any number of
// connections at once: what the bench forwards ports to, in a pod.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "echo:", serve())
	os.Exit(1)
}

// serve returns when it cannot go on.
func serve() error {
	l, err := net.Listen("tcp", ":9000")
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // whoever connects sees how it ends
		}()
	}
}
