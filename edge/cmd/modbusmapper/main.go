// Command modbusmapper connects Modbus devices (TCP, and RTU frames over TCP) with
// the edgecore of its node. It is only a front door: edge/mapper speaks with
// edgecore, edge/mapper/modbus with the devices. What to read and write is in the
// Devices of the cluster; it needs no file. Exit codes: 0 ended by a signal, 1 failed,
// 2 called in a wrong way.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-edge/holdfast/edge/mapper"
	"github.com/holdfast-edge/holdfast/edge/mapper/modbus"
)

// version is set by the linker.
var version = "unreleased"

const help = `modbusmapper connects Modbus devices with the edgecore of this node.

It serves every Device of this node whose spec.protocol.protocolName is "modbus":

  spec:
    protocol:
      protocolName: modbus
      configData:
        address: "192.0.2.7:502"   # or ip and port
        transport: tcp             # or rtuovertcp: RTU frames through a TCP gateway
        unit: 1                    # slaveID is the same
        timeout: 1000              # milliseconds
    properties:
    - name: temperature            # a property of the device's model
      collectCycle: 1000           # milliseconds
      visitors:
        configData:
          register: inputRegister  # coil, discreteInput, inputRegister, holdingRegister
          offset: 7                # the register's number, from 0
          dataType: int16          # uint16, int32, uint32, int64, uint64, float32,
                                   # float64, bit, string, bytes
          scale: 0.1               # value = register * scale + valueOffset
          byteOrder: big           # little: the low byte of each register first
          wordOrder: big           # little: the low register first

More fields: valueOffset; bit (0 to 15); limit (the registers of string and bytes);
writeMultiple (functions 15 and 16 in the place of 5 and 6); and for the device
readGap (unused registers that may be read along). The names that KubeEdge's Modbus
mappers use are understood as well.

Usage: modbusmapper [flags]

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var wrong usageError
	switch {
	case err == nil:
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, "modbusmapper:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "modbusmapper:", err)
		os.Exit(1)
	}
}

// usageError is a call that cannot be meant.
type usageError struct{ error }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("modbusmapper", flag.ContinueOnError)
	flags.SetOutput(stdout)
	flags.Usage = func() {
		fmt.Fprint(stdout, help)
		flags.PrintDefaults()
	}
	edgecore := flags.String("edgecore-socket", "/run/holdfast/dmi.sock", "edgecore's socket for mappers, the `path` of its config key dmiSocket")
	socket := flags.String("socket", "/run/holdfast/mappers/modbus.sock", "the `path` of this mapper's own socket; edgecore must reach it by the same path")
	name := flags.String("name", "modbus-mapper", "how edgecore shall call this mapper")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return usageError{err}
	}
	var logLevel slog.Level
	switch {
	case flags.NArg() > 0:
		return usageError{fmt.Errorf("unknown argument %q: see modbusmapper --help", flags.Arg(0))}
	case *showVersion:
		fmt.Fprintf(stdout, "modbusmapper %s\n", version)
		return nil
	case !filepath.IsAbs(*edgecore) || !filepath.IsAbs(*socket):
		return usageError{errors.New("--edgecore-socket and --socket must be absolute paths")}
	case logLevel.UnmarshalText([]byte(*level)) != nil:
		return usageError{fmt.Errorf("--log-level %q is none of debug, info, warn and error", *level)}
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // memory is dearer than time here
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: logLevel}))
	log.Info("modbusmapper starts", "version", version)

	// The driver reports through the mapper, and the mapper sets the driver's devices.
	up := new(through)
	driver := modbus.New(modbus.Options{Up: up, Log: log})
	up.Mapper = mapper.New(mapper.Options{
		Name: *name, Version: version, Protocol: "modbus", Edgecore: *edgecore, Socket: *socket, Driver: driver, Log: log,
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return driver.Run(ctx) })
	group.Go(func() error { return up.Run(ctx) })
	err := group.Wait()
	log.Info("modbusmapper stops", "err", err)
	return err
}

// through leads from the driver to the mapper that is made after it.
type through struct{ *mapper.Mapper }
