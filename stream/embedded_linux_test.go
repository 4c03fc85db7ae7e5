package stream

import (
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
)

// frozenVariable says, in the environment of this test binary started again, that it is the process whose
// files may not grow.
const frozenVariable = "PGBRIDGE_STREAM_FROZEN"

// TestServerFrozenByAnIOError runs in a process of its own, since the limit on the size of its files, by
// which writes are made to fail, holds for the whole process.
func TestServerFrozenByAnIOError(t *testing.T) {
	if os.Getenv(frozenVariable) != "" {
		freezeAndMend(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerFrozenByAnIOError$", "-test.v")
	cmd.Env = append(os.Environ(), frozenVariable+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func freezeAndMend(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	s := startServer(t, ServerOptions{})
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	p, _ := running(t, nc, 1, PublisherOptions{})
	limitFiles(t, 200<<10)
	n := uint64(0)
	for s.Healthy() == nil && n < MaxWindowFrames {
		n++
		publish(t, p, numbered(1, n, 50<<10))
	}
	ctx := testContext(t)
	for s.Healthy() == nil {
		if err := pause(ctx, minBackoff, nil); err != nil {
			t.Fatal("the server calls itself healthy, though it stores nothing")
		}
	}
	t.Log(s.Healthy())
	limitFiles(t, 1<<30)
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := s.Healthy(); err != nil {
		t.Fatal(err)
	}
	await(t, p, p.Next()-1)
	wantStored(t, nc, n)
}

func limitFiles(t *testing.T, bytes uint64) {
	t.Helper()
	var l syscall.Rlimit
	err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l)
	l.Cur = bytes
	if err := errors.Join(err, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l)); err != nil {
		t.Fatal(err)
	}
}
