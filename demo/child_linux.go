package demo

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttr has the kernel kill a bridge when the demonstration dies.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// awaitStopped waits until a child has met its SIGSTOP, or its end.
func awaitStopped(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait until bridge, pid %d, is paused: %w", pid, err)
		}
		return nil
	}
}
