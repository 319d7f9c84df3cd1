package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// notifySystemd sends one message of sd_notify(3), if systemd waits for any.
func notifySystemd(message string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte(message))
	return errors.Join(err, conn.Close())
}

// watchNetwork signals wake when a link, an address or a route of this machine
// changes, so that a line that is mended is used at once and not after the pause
// between two attempts. Where the kernel does not tell, the pauses must do.
func watchNetwork(ctx context.Context, wake chan<- struct{}) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		<-ctx.Done()
		return nil
	}
	const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		<-ctx.Done()
		return nil
	}
	events := os.NewFile(uintptr(fd), "netlink")
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	defer events.Close()
	buf := make([]byte, 4096)
	for ctx.Err() == nil {
		if _, err := events.Read(buf); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !errors.Is(err, unix.ENOBUFS) { // some were lost, and this is one of them
				return fmt.Errorf("watch the machine's network: %w", err)
			}
		}
		select {
		case wake <- struct{}{}:
		default:
		}
		select { // a change comes as several messages; and a wild network must not make the dialler wild
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}
