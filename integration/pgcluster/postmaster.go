package pgcluster

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
)

// postmaster is one run of a server.
type postmaster struct {
	pid  int
	done chan struct{} // closed by the goroutine that waits for it, once it has ended
}

// launch starts the server. The goroutine that does so keeps its thread until
// the server has ended: the kernel's parent-death signal is bound to the thread
// that forked, and Go may end an idle one.
func (c *Cluster) launch() (*postmaster, error) {
	log, err := os.OpenFile(c.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(c.install.BinDir, "postgres"), "-D", c.DataDir())
	cmd.Dir = c.DataDir()
	cmd.Env = serverEnv()
	if c.clock {
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+c.clockLibrary(), "PGCLUSTER_CLOCK="+c.clockPath())
	}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = childAttr()
	cmd.SysProcAttr.Setpgid = true // Ctrl-C is for us, we stop the server
	cmd.SysProcAttr.Credential = c.acc.credential()

	p := &postmaster{done: make(chan struct{})}
	started := make(chan error) // one value from the goroutine
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := errors.Join(cmd.Start(), log.Close())
		if cmd.Process != nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if cmd.Process == nil {
			return
		}
		cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	return p, <-started
}

// serverEnv is the environment of initdb and the server: nothing of ours, such
// as PGDATA or a locale, reaches them.
func serverEnv() []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}
