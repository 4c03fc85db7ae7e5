// Command pgbridge makes an ordinary PostgreSQL primary one leader of a multi-leader database.
//
// It owns the command line: one file per verb reads its flags, loads the configuration and hands both to
// package bridge, or demo, through the [backend] seam; root.go ties the verbs together. There is no logic of the
// product here, no SQL and no NATS.
//
// exit.go maps every error to the exit code that a supervisor can act on. signal.go holds the one
// goroutine: it waits for signals, is joined before the program ends, and lets a second signal leave at
// once, which is safe since nothing that matters is only in memory.
//
// What happens when PostgreSQL, the broker or a peer is away is bridge's to say: status prints it.
//
// Begin with root.go.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker in releases and images; otherwise the build information has it.
var version string

func main() {
	signals := make(chan os.Signal, 2) // a second signal must not be lost while the first is taken
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	code := execute(context.Background(), os.Args[1:], terminal{os.Stdout, os.Stderr}, realBackend(), signals, os.Exit)
	os.Exit(code)
}
