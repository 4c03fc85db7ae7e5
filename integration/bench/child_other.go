//go:build !linux

package main

import "syscall"

// childAttr keeps Ctrl-C from a bridge: it is stopped in order.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
