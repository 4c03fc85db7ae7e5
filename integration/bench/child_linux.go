package main

import "syscall"

// childAttr makes a bridge end with this program even after kill -9, and keeps Ctrl-C from it: it is
// stopped in order. The signal goes by thread; Go ends no thread on which a goroutine was not locked.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
