package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Mode is a way to shut a server down.
type Mode int

const (
	// Fast ends all sessions and writes a checkpoint. The server first waits
	// until its walsenders have sent everything, so a reader that hangs can hold
	// it up (wal_sender_timeout).
	Fast Mode = iota
	// Immediate leaves without a checkpoint, so that the next start recovers from
	// the WAL.
	Immediate
)

// closeTimeout is what an immediate stop may take before Close kills the server.
// The postmaster itself gives its children 5 s (SIGKILL_CHILDREN_AFTER_SECS).
const closeTimeout = 20 * time.Second

// Stop shuts the server down and waits for its end; a stopped one is left
// alone. When ctx ends first, the server is killed and the context's cause
// returned.
func (c *Cluster) Stop(ctx context.Context, mode Mode) error {
	c.change.Lock()
	defer c.change.Unlock()
	proc := c.running()
	if proc == nil {
		return nil
	}
	signal := syscall.SIGINT
	if mode == Immediate {
		signal = syscall.SIGQUIT
	}
	if err := syscall.Kill(proc.pid, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop PostgreSQL, pid %d: %w", proc.pid, err)
	}
	select {
	case <-proc.done:
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("stop PostgreSQL, pid %d: %w", proc.pid, context.Cause(ctx)), c.kill(proc))
	}
}

// Kill ends the postmaster and all its children with SIGKILL, as a crash of the
// machine would but for what the kernel still holds of its files, and waits for
// their end. A stopped server is left alone. (Elsewhere than on Linux it is an
// immediate stop.)
func (c *Cluster) Kill() error {
	c.change.Lock()
	defer c.change.Unlock()
	proc := c.running()
	if proc == nil {
		return nil
	}
	return c.kill(proc)
}

// kill also removes what a crash leaves behind: the lock file, since all that
// ran is known to have ended while the next start could only see that its
// process id is in use again, and the shared memory that the file names.
func (c *Cluster) kill(proc *postmaster) error {
	path := filepath.Join(c.DataDir(), "postmaster.pid")
	lockFile, errRead := os.ReadFile(path)
	if err := proc.kill(); err != nil {
		return fmt.Errorf("kill PostgreSQL, pid %d: %w", proc.pid, err)
	}
	if errors.Is(errRead, os.ErrNotExist) {
		return nil
	}
	const segmentLine = 6 // LOCK_FILE_LINE_SHMEM_KEY - 1, src/include/utils/pidfile.h
	if lines := strings.Split(string(lockFile), "\n"); len(lines) > segmentLine {
		if err := removeSegment(lines[segmentLine]); err != nil {
			return err
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Close stops the server at once and removes the directory that Start made of
// itself; one that the caller named stays, with the data and the log in it. The
// cluster cannot be used after it.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := c.Stop(ctx, Immediate)
	err = errors.Join(err, os.RemoveAll(c.socketDir)) // it may lie elsewhere
	if c.release == nil {
		return err
	}
	defer c.release()
	return errors.Join(err, os.RemoveAll(c.dir))
}

// running returns the postmaster, nil when it isn't there.
func (c *Cluster) running() *postmaster {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proc == nil {
		return nil
	}
	select {
	case <-c.proc.done:
		c.proc = nil
	default:
	}
	return c.proc
}
