package browser

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"
)

// patience bounds each wait for something that has to happen.
const patience = 2 * time.Minute

// program is a pgbridge that runs, and what it says.
type program struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // to be read behind ended

	mu    sync.Mutex
	text  strings.Builder
	lines chan string
}

// start runs the program that the environment names; the test ends it.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	name := os.Getenv("PGBRIDGE")
	if name == "" {
		t.Fatal("PGBRIDGE does not name the program to test; run make browser")
	}
	p := &program{cmd: exec.Command(name, args...), ended: make(chan struct{}), lines: make(chan string, 1000)}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.cmd.Stdout
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		defer close(p.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			p.mu.Lock()
			p.text.WriteString(s.Text() + "\n")
			p.mu.Unlock()
			p.lines <- s.Text()
		}
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		if err := p.end(); err != nil {
			t.Errorf("%s: %v", strings.Join(args, " "), err)
		}
		if t.Failed() {
			t.Logf("it said:\n%s", p.said())
		}
	})
	return p
}

// end is Ctrl-C; the error is the program's.
func (p *program) end() error {
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.ended
	}
	return p.err
}

func (p *program) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits for a line, and returns what the pattern has found in it.
func (p *program) await(t *testing.T, pattern string) string {
	t.Helper()
	late := time.After(patience)
	for re := regexp.MustCompile(pattern); ; {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("it ended, and never said %s:\n%s", pattern, p.said())
			}
			if found := re.FindString(line); found != "" {
				return found
			}
		case <-late:
			t.Fatalf("it did not say %s:\n%s", pattern, p.said())
		}
	}
}

// open starts Chromium, which the test ends.
func open(t *testing.T) context.Context {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, // as root there is none
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true), chromedp.UserDataDir(t.TempDir()))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	return tab(t, ctx)
}

// tab opens another tab of the browser.
func tab(t *testing.T, browser context.Context) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	do(t, ctx)
	return ctx
}

// do does something in a tab.
func do(t *testing.T, ctx context.Context, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// eval is the value of a JavaScript expression in a tab.
func eval[T any](t *testing.T, ctx context.Context, expression string) T {
	t.Helper()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// call sends a command of the protocol to a tab.
func call[P, R any](t *testing.T, ctx context.Context, cmd cdp.Command[P, R], params P) {
	t.Helper()
	if _, err := chromedp.Call(ctx, cmd, params); err != nil {
		t.Fatal(err)
	}
}

// await waits until a JavaScript expression is true in a tab.
func await(t *testing.T, ctx context.Context, expression string) {
	t.Helper()
	_, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(20*time.Millisecond), chromedp.WithPollingTimeout(patience)))
	if err != nil {
		t.Fatalf("await %s: %v; the page says:\n%s", expression, err, eval[string](t, ctx, `document.body.innerText`))
	}
}
