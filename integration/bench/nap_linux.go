package main

import (
	"syscall"
	"time"
)

// nap sleeps for less than a millisecond, which time.Sleep cannot where nothing else runs: the runtime's poller waits for
// whole ones.
func nap(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // a signal only ends it early
}
