package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

// Source is where a bridge's configuration came from, and can be read again.
type Source struct {
	// File is the path of the file; empty if there was none.
	File string
	// Load reads it again, with what prevails over it.
	Load func() (*config.Config, error)
	// Asked gives a value each time it is to be read again, beside POST /reload on the status socket.
	Asked <-chan os.Signal
	// Changed is told each new configuration; what the bridge does not use itself, such as the log's settings, is taken over there.
	Changed func(*config.Config)
}

// settings are the configuration as the last reload left it. Keys that are no live ones are in it what they were at the start, so
// that only those who use a live key need ask here; all others read bridge.cfg.
type settings struct {
	mu      sync.Mutex
	cfg     *config.Config
	changed chan struct{} // closed when cfg is another one
	refused *Alarm        // the last reload changed nothing
}

func newSettings(cfg *config.Config) *settings {
	return &settings{cfg: cfg, changed: make(chan struct{})}
}

// get returns the configuration, and what is closed when it is another one.
func (s *settings) get() (*config.Config, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg, s.changed
}

// now returns the configuration.
func (s *settings) now() *config.Config {
	cfg, _ := s.get()
	return cfg
}

// alarm tells of a reload that was refused, until one is not.
func (s *settings) alarm() *Alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// Reloaded is what a reload has changed.
type Reloaded struct {
	File    string              `json:"file"`
	Changed []config.Difference `json:"changed"`
}

// RestartError means that a configuration cannot be taken over by a bridge that runs.
type RestartError struct {
	Keys []string // that differ and are read at the start alone
	Live []string // that differ and could have been changed
}

// Error names the keys.
func (e *RestartError) Error() string {
	text := strings.Join(e.Keys, ", ") + ": read when the bridge starts; restart it to have what the file says now. Nothing was changed"
	if len(e.Live) > 0 {
		text += ", " + strings.Join(e.Live, ", ") + " neither"
	}
	return text
}

// reload reads the configuration again and takes it over, all of it or nothing.
func (b *bridge) reload() (*Reloaded, error) {
	done, err := b.takeOver()
	if err != nil {
		b.log.Error("configuration is not reloaded", "err", err.Error())
		return nil, err
	}
	var keys []string
	for _, d := range done.Changed {
		keys = append(keys, d.String())
	}
	b.log.Info("configuration is reloaded", "file", done.File, "changed", strings.Join(keys, ", "))
	return done, nil
}

func (b *bridge) takeOver() (*Reloaded, error) {
	s, from := b.settings, b.opts.Source
	s.mu.Lock()
	defer s.mu.Unlock()
	done := &Reloaded{File: from.File, Changed: []config.Difference{}}
	cfg, err := from.Load()
	if err == nil {
		var restart RestartError
		for _, d := range config.Diff(s.cfg, cfg) {
			if d.Live {
				done.Changed = append(done.Changed, d)
				restart.Live = append(restart.Live, d.Key)
			} else {
				restart.Keys = append(restart.Keys, d.Key)
			}
		}
		if len(restart.Keys) > 0 {
			err = &restart
		}
	}
	if err != nil {
		s.refused = &Alarm{Code: "reload-refused", Severity: SeverityWarning,
			Text: fmt.Sprintf("the configuration was to be read again at %s, and the one before goes on: %s", time.Now().UTC().Format(time.RFC3339), strings.ReplaceAll(err.Error(), "\n", "; ")),
			Mend: "correct the file and run pgbridge reload, or restart the bridge where a key needs that"}
		return nil, err
	}
	s.refused = nil
	if len(done.Changed) > 0 {
		s.cfg = cfg
		close(s.changed)
		s.changed = make(chan struct{})
		from.Changed(cfg)
	}
	if l, _ := b.current.get(); l != nil {
		l.applier.SetLimits(limits(cfg))
	}
	return done, nil
}

// limits are what apply takes over.
func limits(cfg *config.Config) apply.Limits {
	return apply.Limits{Rate: int64(cfg.Apply.Rate), YieldAt: cfg.Apply.YieldAt, ConflictRetention: cfg.Apply.ConflictRetention, ConflictRows: cfg.Apply.ConflictRows}
}

// limit gives a life that has just become the current one what was changed while it began.
func (l *life) limit() {
	l.settings.mu.Lock()
	defer l.settings.mu.Unlock()
	l.applier.SetLimits(limits(l.settings.cfg))
}

// watchReloads reloads whenever that is asked for, until ctx ends.
func (b *bridge) watchReloads(ctx context.Context) {
	if b.opts.Source == nil {
		return
	}
	for {
		select {
		case <-b.opts.Source.Asked:
			_, _ = b.reload() // said in the log and in status
		case <-ctx.Done():
			return
		}
	}
}

var errNoFile = errors.New("the bridge was started without a configuration file, and what it found in its environment cannot change; restart it")

// serveReload answers POST /reload with what has changed, or 409 with the reason why nothing has.
func (b *bridge) serveReload(w http.ResponseWriter, r *http.Request) {
	from, file := b.opts.Source, r.URL.Query().Get("file")
	var done *Reloaded
	var err error
	switch {
	case from == nil || from.File == "":
		err = errNoFile
	case file != from.File:
		err = fmt.Errorf("the bridge that runs for this node was started with --config %s, not %s: it reads its own file again", from.File, file)
	default:
		done, err = b.reload()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(done)
}

// Reload has the bridge that runs with this configuration read its file again. ErrNotRunning if none does; else the error says why
// nothing has changed.
func Reload(ctx context.Context, cfg *config.Config, file string) (*Reloaded, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	resp, err := send(ctx, cfg, http.MethodPost, "/reload?file="+url.QueryEscape(file))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, fmt.Errorf("read the answer of the bridge: %w", err)
		}
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	done := &Reloaded{}
	if err := json.NewDecoder(resp.Body).Decode(done); err != nil {
		return nil, fmt.Errorf("read the answer of the bridge: %w", err)
	}
	return done, nil
}
