package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/console"
	"github.com/pgbridge/pgbridge/stream"
)

// Options are what the caller of Run decides beside the configuration.
type Options struct {
	Logger *slog.Logger // slog.Default if nil
	// NoHold switches the causal hold off, so that a test can show what it is for.
	NoHold bool
	// Ready, if set, is called once when all parts of the first life run.
	Ready func()
	// Source, if set, is where the configuration can be read again from.
	Source *Source
}

// Run runs the node's bridge until ctx ends. It returns nil when ctx was cancelled; otherwise the reason
// why it cannot go on, which names the mend.
func Run(ctx context.Context, cfg *config.Config, opts Options) error {
	b := &bridge{cfg: cfg, settings: newSettings(cfg), primary: capture.NewPrimary(cfg.Postgres.DSN), opts: opts, log: opts.Logger, started: time.Now()}
	defer b.primary.Close()
	if b.log == nil {
		b.log = slog.Default()
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := b.checkLinks(); err != nil {
		return err
	}
	if b.traces, err = newTraces(ctx, cfg, b.log); err != nil {
		return err
	}
	defer b.traces.close()
	if err := b.startServer(); err != nil {
		return err
	}
	defer b.stopServer()
	stop, err := b.serveStatus()
	if err != nil {
		return err
	}
	defer stop()
	reloads, endReloads := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { b.watchReloads(reloads) })
	defer watching.Wait()
	defer endReloads()
	return b.live(ctx)
}

// bridge is what lives across lives.
type bridge struct {
	cfg      *config.Config // as at the start
	settings *settings      // for those keys that a reload changes; nil where no bridge runs
	opts     Options
	log      *slog.Logger
	server   *stream.Server // nil: external NATS
	primary  *capture.Primary
	traces   *traces
	started  time.Time
	everRan  bool                   // a life has come to run
	waits    atomic.Int32           // over HTTP, for tokens
	current  current                // the life that runs, for status
	shadow   atomic.Pointer[shadow] // of a node in shadow mode, while it works
	lack     lack
	links    links
	verify   verifies
	console  *console.Console // nil: there is none
}

const (
	// firstPatience is how long a starting bridge waits for PostgreSQL and the broker; a supervisor
	// may want to hear of it then.
	firstPatience = 30 * time.Second
	// steady is how long a life must have run for what ended it to be taken for something new.
	steady = 5 * time.Second
)

// live runs life after life.
func (b *bridge) live(ctx context.Context) error {
	begun, pauses := time.Now(), pauses{}
	for {
		ran, err := b.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, stream.ErrFenced) {
			return fmt.Errorf("%w: %w", err, apply.ErrFenced)
		}
		if errors.Is(err, errCameBack) || errors.Is(err, errRegained) || errors.Is(err, errDeleted) {
			begun = time.Now()
			continue
		}
		if permanent(err) && !(b.everRan && promoting(err)) {
			return err
		}
		if !b.everRan && time.Since(begun) > firstPatience {
			return err
		}
		pause := pauses.next(!ran.IsZero() && time.Since(ran) >= steady)
		b.current.fail(err)
		b.log.Warn("bridge starts anew", "err", err.Error(), "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// once runs one life, or what a node in shadow mode does instead; ran is since when all its parts have run.
func (b *bridge) once(ctx context.Context) (ran time.Time, err error) {
	if b.cfg.Mode == config.ModeShadow {
		s := &shadow{bridge: b}
		err = s.run(ctx)
		return s.ran, err
	}
	l := &life{bridge: b, forgets: make(chan error, 1)}
	err = l.run(ctx)
	return l.ran, err
}

// permanent reports whether trying again cannot help: somebody has to act first.
func permanent(err error) bool {
	var exit interface{ ExitCode() int }
	var check *capture.CheckError
	if errors.As(err, &check) {
		return !check.Has(capture.CodeUnreachable)
	}
	return errors.As(err, &exit) || errors.Is(err, apply.ErrNotSetUp) ||
		errors.Is(err, stream.ErrForeignStream) || errors.Is(err, stream.ErrStreamLost)
}

// promoting reports whether err says that a standby answers, as it does where a failover is under way.
func promoting(err error) bool {
	var check *capture.CheckError
	return errors.As(err, &check) && check.Has(capture.CodeStandby)
}

// lockDataDir makes sure that one bridge at a time uses the directory: the embedded server does not lock
// its store.
func lockDataDir(dir string) (func(), error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w; make it writable or choose another", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data_dir: %w; make it writable or choose another", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data_dir %s is in use by another pgbridge: %w", dir, apply.ErrFenced)
	}
	return func() {
		// Closing it alone would leave the lock to a process that is just being started, and has the file until it runs a program of its own.
		syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}, nil
}

// fenceStore is what the embedded server may store beyond nats.embedded.max_store: the fences of bridges that start
// while a stream of that size is full, a thousand of them.
const fenceStore = 64 << 20

func (b *bridge) startServer() error {
	if !b.cfg.Embedded() {
		return nil
	}
	e := b.cfg.NATS.Embedded
	o := stream.ServerOptions{
		Listen: e.Listen, StoreDir: filepath.Join(b.cfg.DataDir, "jetstream"), SyncAlways: e.Sync == "always",
		MaxStore: int64(e.MaxStore) + fenceStore, MaxPayload: int32(e.MaxPayload), AllowPlaintext: e.AllowPlaintext, Token: b.cfg.NATS.Token,
		Logger: b.log,
	}
	keys, err := readKeys(b.cfg)
	if err != nil {
		return err
	}
	if keys != nil {
		o.TLS, o.Users, o.OwnKey = keys.tls, keys.serverUsers(b.cfg), keys.file(seedFile)
	}
	s, err := stream.StartServer(o)
	if err != nil {
		return err
	}
	b.server = s
	return nil
}

func (b *bridge) stopServer() {
	if b.server != nil {
		b.server.Close()
	}
}
