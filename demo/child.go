package demo

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// child is a bridge as a program of its own. Its methods are for one goroutine.
type child struct {
	cmd    *exec.Cmd
	done   chan struct{} // closed once it has ended
	why    error         // how it ended; to be read after done
	killed bool          // we ended it
	paused bool          // we hold it
}

// startChild starts a program whose output goes to the end of a log. The goroutine that does so keeps its
// thread until the program has ended: the kernel's parent-death signal is bound to the thread that
// forked, and Go may end an idle one.
func startChild(logPath, program string, args ...string) (*child, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Env = childEnv(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr()
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for us, we stop it

	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error) // one value from the goroutine
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := cmd.Start()
		log.Close() // the child has its own; nothing was written through this one
		started <- err
		if err != nil {
			return
		}
		if c.why = cmd.Wait(); c.why == nil {
			c.why = errors.New("exit code 0")
		}
	}()
	return c, <-started
}

// childEnv leaves out the variables that would override the configuration file: they may well lead to a
// real database.
func childEnv(environ []string) []string {
	var env []string
	for _, assignment := range environ {
		if !strings.HasPrefix(assignment, "PGBRIDGE_") {
			env = append(env, assignment)
		}
	}
	return env
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// running reports whether the program has not ended.
func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// state says what the bridge does, as the figures call it.
func (c *child) state() string {
	switch {
	case c.killed:
		return bridgeKilled
	case c.paused:
		return bridgePaused
	}
	return bridgeRuns
}

// kill ends the program with SIGKILL.
func (c *child) kill() {
	c.killed = true
	c.cmd.Process.Kill() // fails if it has ended, which is what we wait for
	<-c.done
}

// stop asks the program to end, and kills it if it does not.
func (c *child) stop(timeout time.Duration) {
	c.killed = true
	c.cmd.Process.Signal(syscall.SIGTERM)
	c.cmd.Process.Signal(syscall.SIGCONT) // a paused one meets no other signal
	select {
	case <-c.done:
	case <-time.After(timeout):
		c.kill()
	}
}

// pause stops the program as a debugger would, until resume. When it returns, the program does nothing
// any more.
func (c *child) pause() error {
	if err := c.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return fmt.Errorf("pause bridge, pid %d: %w", c.pid(), err)
	}
	c.paused = true
	return awaitStopped(c.pid())
}

func (c *child) resume() error {
	c.paused = false
	if err := c.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return fmt.Errorf("resume bridge, pid %d: %w", c.pid(), err)
	}
	return nil
}
