package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
)

var build struct {
	sync.Once
	path string
	err  error
	out  []byte
}

// Binary builds the command once per test binary and returns its path.
func Binary(t testing.TB) string {
	t.Helper()
	build.Do(func() {
		dir, err := os.MkdirTemp("", "pgbridge")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "pgbridge")
		cmd := exec.Command("go", "build", "-o", build.path, "github.com/pgbridge/pgbridge/cmd/pgbridge")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.out, build.err = cmd.CombinedOutput()
	})
	if build.err != nil {
		t.Fatalf("build pgbridge: %v\n%s", build.err, build.out)
	}
	return build.path
}

// process is a bridge as a process of its own.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

func (n *Node) startProcess() {
	n.t.Helper()
	n.Launch()
	end := time.Now().Add(60 * time.Second)
	for {
		if r, err := bridge.Status(context.Background(), n.Load()); err == nil && r.Waiting == "" {
			return
		}
		select {
		case <-n.process.done:
			n.t.Fatalf("bridge of node %s ended: %v\n%s", n.Name, n.process.err, n.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(end) {
			n.t.Fatalf("bridge of node %s does not come up\n%s", n.Name, n.LogTail())
		}
	}
}

// Launch starts the bridge as a process and does not wait until it runs.
func (n *Node) Launch() {
	n.t.Helper()
	p, err := n.spawn()
	if err != nil {
		n.t.Fatal(err)
	}
	n.process = p
	n.t.Cleanup(func() { p.cmd.Process.Kill(); <-p.done })
}

func (n *Node) spawn() (*process, error) {
	log, err := n.openLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := []string{"run", "--config", n.File}
	for key, value := range n.c.opts.Config {
		args = append(args, "--set", key+"="+value)
	}
	program := n.Program
	if program == "" {
		program = Binary(n.t)
	}
	p := &process{cmd: exec.Command(program, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	started := make(chan error)
	go func() {
		// The kernel kills the child when the thread that started it ends, so this one stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	return p, <-started
}

// Kill ends the bridge's process with SIGKILL.
func (n *Node) Kill() {
	n.t.Helper()
	if n.process == nil {
		return
	}
	n.process.cmd.Process.Kill()
	<-n.process.done
	n.process = nil
}

// AwaitEnd waits until the bridge's process has ended by itself.
func (n *Node) AwaitEnd() {
	n.t.Helper()
	select {
	case <-n.process.done:
	case <-time.After(convergeTime):
		n.t.Fatalf("bridge of node %s does not end\n%s", n.Name, n.LogTail())
	}
}

// Pid is that of the bridge's process.
func (n *Node) Pid() int { return n.process.cmd.Process.Pid }

// Running reports whether the bridge's process is alive.
func (n *Node) Running() bool {
	if n.process == nil {
		return false
	}
	select {
	case <-n.process.done:
		return false
	default:
		return true
	}
}

func (p *process) terminate(t testing.TB) {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.err != nil {
			t.Errorf("bridge ended with %v", p.err)
		}
	case <-time.After(30 * time.Second):
		t.Error("bridge does not stop")
		p.cmd.Process.Kill()
		<-p.done
	}
}

// Status asks the node's bridge.
func (n *Node) Status() *bridge.Report {
	r, _ := bridge.Status(context.Background(), n.Load())
	return r
}

func (n *Node) statusText() string {
	b, _ := json.MarshalIndent(n.Status(), "", "  ")
	return string(b)
}

// Supervise starts the bridge's process again whenever it ends, until the function that it returns is called, or the test ends.
func (n *Node) Supervise() (leave func()) {
	n.t.Helper()
	stop := make(chan struct{})
	done := make(chan struct{})
	p := n.process
	go func() {
		defer close(done)
		for {
			select {
			case <-p.done:
				next, err := n.spawn()
				if err != nil {
					n.t.Error(err)
					return
				}
				p = next
				select {
				case <-time.After(100 * time.Millisecond): // as a supervisor would
				case <-stop:
				}
			case <-stop:
				return
			}
		}
	}()
	leave = sync.OnceFunc(func() {
		close(stop)
		<-done
		n.process = p
	})
	n.t.Cleanup(func() { leave(); p.cmd.Process.Kill(); <-p.done })
	return leave
}

// PeakMemory returns the highest resident memory of the bridge's process so far, in bytes.
func (n *Node) PeakMemory() int64 {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.process.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	n.t.Fatal("no VmHWM in the process's status")
	return 0
}
