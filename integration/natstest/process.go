package natstest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// processVariable holds, in the environment of a process that StartProcess
// started, its Options as JSON.
const processVariable = "PGBRIDGE_NATSTEST_PROCESS"

// ready is the line, followed by the port, with which such a process says that
// it serves.
const ready = "ready "

// Main runs the tests of a package and exits with their result, unless this is
// a process that StartProcess started: that one serves until it is killed or its
// parent is gone.
func Main(m *testing.M) {
	if o := os.Getenv(processVariable); o != "" {
		if err := serve(o); err != nil {
			fmt.Fprintln(os.Stderr, "natstest:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serve(options string) error {
	var o Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		return err
	}
	srv, err := start(o)
	if err != nil {
		return err
	}
	fmt.Printf("%s%d\n", ready, srv.Addr().(*net.TCPAddr).Port)
	_, err = io.Copy(io.Discard, os.Stdin)
	srv.Shutdown()
	srv.WaitForShutdown()
	return err
}

// Process is a NATS server in a process of its own.
type Process struct {
	opts  Options
	cmd   *exec.Cmd
	stdin io.Closer
}

// StartProcess starts a NATS server as a process, which is killed at the end of
// the test. The package's TestMain must be Main.
func StartProcess(t testing.TB, o Options) *Process {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	p := &Process{opts: o}
	p.Start(t)
	t.Cleanup(p.Kill)
	return p
}

// Start starts the server after a Kill, on the same port and store.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	if err := p.start(); err != nil {
		t.Fatalf("start a NATS server as a process: %v", err)
	}
}

func (p *Process) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	options, err := json.Marshal(p.opts)
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-test.run=^$")
	cmd.Env = append(os.Environ(), processVariable+"="+string(options))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd, p.stdin = cmd, stdin
	line, err := bufio.NewReader(stdout).ReadString('\n')
	port, ok := strings.CutPrefix(strings.TrimSpace(line), ready)
	if err != nil || !ok {
		p.Kill()
		return errors.New("it did not say that it is ready; is the package's TestMain natstest.Main?")
	}
	p.opts.Port, err = strconv.Atoi(port)
	return err
}

// Kill ends the process with SIGKILL and waits for its end. Killing twice is
// legal.
func (p *Process) Kill() {
	if p.cmd == nil {
		return
	}
	// Both fail only when the process is gone already, and its exit code says no
	// more than that it was killed.
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	_ = p.stdin.Close()
	p.cmd = nil
}

// URL is where clients find the server.
func (p *Process) URL() string { return "nats://" + p.Addr() }

// Addr is the server's host and port.
func (p *Process) Addr() string { return address(p.opts.Port) }
