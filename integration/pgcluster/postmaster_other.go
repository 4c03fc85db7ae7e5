//go:build unix && !linux

package pgcluster

import (
	"errors"
	"syscall"
)

// childAttr: there is no parent-death signal here, Close must be called.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

// kill is an immediate stop: the children cannot be listed reliably here.
func (p *postmaster) kill() error {
	if err := syscall.Kill(p.pid, syscall.SIGQUIT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	<-p.done
	return nil
}

// removeSegment has nothing to do: an immediate stop leaves none.
func removeSegment(string) error { return nil }
