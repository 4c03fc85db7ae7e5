package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a running bridge, whose log is read as it comes.
type process struct {
	cmd  *exec.Cmd
	log  *bridgeLog
	file *os.File
	done chan struct{} // closed when the process has ended and err is set
	err  error
}

// startProcess starts a bridge whose log also goes to the end of a file.
func startProcess(command []string, logFile string) (*process, error) {
	file, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(command[0], command[1:]...), file: file, done: make(chan struct{}),
		log: &bridgeLog{file: file, running: make(chan time.Time, 1)}}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = childAttr()
	if err := p.cmd.Start(); err != nil {
		file.Close()
		return nil, fmt.Errorf("start %s: %w; run make build", command[0], err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// startTimeout is how long a bridge may take to come up.
const startTimeout = 60 * time.Second

// awaitRunning waits until the bridge has said that all its parts run, and returns when that was, by its
// own word.
func (p *process) awaitRunning(ctx context.Context) (time.Time, error) {
	select {
	case t := <-p.log.running:
		return t, nil
	case <-p.done:
		return time.Time{}, p.ended()
	case <-time.After(startTimeout):
		return time.Time{}, fmt.Errorf("a bridge does not come up within %s; its log ends with\n%s", startTimeout, p.log.tail())
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
}

// ended says how the process ended, nil while it runs.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("a bridge ended by itself (%v); its log ends with\n%s", p.err, p.log.tail())
	default:
		return nil
	}
}

func (p *process) complaints() []string { return p.log.complaints() }

// stopTimeout is how long a bridge may take to leave; its own limit is 10 s.
const stopTimeout = 20 * time.Second

// stop ends the process with SIGTERM and waits for it.
func (p *process) stop() error {
	defer p.file.Close()
	p.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has ended
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("a bridge ended with %w; its log ends with\n%s", p.err, p.log.tail())
		}
		return nil
	case <-time.After(stopTimeout):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("a bridge did not stop within %s; its log ends with\n%s", stopTimeout, p.log.tail())
	}
}

// bridgeLog takes a bridge's log in: it keeps the end of it, notes warnings and errors, and tells when
// the bridge says that it runs.
type bridgeLog struct {
	file    *os.File
	running chan time.Time // one value, from the writer

	mu   sync.Mutex // guards the rest
	part []byte     // of a line that has not ended
	told bool
	last []string
	bad  []string
}

// runningMessage is what package bridge logs when all parts of a life run.
const runningMessage = `msg="bridge runs"`

// Write takes a piece of the log.
func (l *bridgeLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.file.Write(b); err != nil {
		return 0, err
	}
	l.part = append(l.part, b...)
	for {
		line, rest, found := bytes.Cut(l.part, []byte("\n"))
		if !found {
			return len(b), nil
		}
		l.take(string(line))
		l.part = slices.Clone(rest)
	}
}

// keptLines bounds what is remembered of a log.
const keptLines = 20

func (l *bridgeLog) take(line string) {
	l.last = append(l.last, line)
	l.last = l.last[max(0, len(l.last)-keptLines):]
	if strings.Contains(line, " level=WARN ") || strings.Contains(line, " level=ERROR ") {
		l.bad = append(l.bad, line)
		l.bad = l.bad[max(0, len(l.bad)-keptLines):]
	}
	if !l.told && strings.Contains(line, runningMessage) {
		l.told = true
		l.running <- lineTime(line)
	}
}

// lineTime returns a log line's own time, in milliseconds, else the present.
func lineTime(line string) time.Time {
	text, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Now()
	}
	return t
}

func (l *bridgeLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}

func (l *bridgeLog) complaints() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.bad)
}
