package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/config"
)

// profiledBridge is the first argument that makes this program a bridge.
const profiledBridge = "profiled-bridge"

// runProfiledBridge runs a bridge as `pgbridge run` does, in a process of its own, and profiles it from
// the moment at which all its parts run. The arguments are the configuration file and what the names of
// the profiles begin with; it returns the exit code.
func runProfiledBridge(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := profileBridge(args, log); err != nil {
		log.Error("profiled bridge ended", "err", err.Error())
		return 1
	}
	return 0
}

func profileBridge(args []string, log *slog.Logger) error {
	if len(args) != 2 {
		return fmt.Errorf("%s needs a configuration file and a prefix, got %q", profiledBridge, args)
	}
	cfg, err := config.Load(args[0], nil)
	if err != nil {
		return err
	}
	cpu, err := os.Create(args[1] + ".cpu.prof")
	if err != nil {
		return err
	}
	defer cpu.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var started error
	err = bridge.Run(ctx, cfg, bridge.Options{Logger: log, Ready: func() { started = pprof.StartCPUProfile(cpu) }})
	pprof.StopCPUProfile()
	return errors.Join(err, started, writeAllocations(args[1]+".allocs.prof"))
}

// writeAllocations writes what was allocated since the process began, and what of it is in use.
func writeAllocations(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}
