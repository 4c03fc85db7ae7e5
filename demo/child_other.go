//go:build unix && !linux

package demo

import "syscall"

// childAttr: there is no parent-death signal here, so that a kill -9 of the demonstration leaves bridges.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// awaitStopped has nothing to wait with here; the signal is met within microseconds.
func awaitStopped(int) error { return nil }
