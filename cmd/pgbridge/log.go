package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/pgbridge/pgbridge/config"
)

// newLogger makes the one logger of a bridge, and what gives it other settings while it is used.
func newLogger(w io.Writer, cfg config.Log) (log *slog.Logger, set func(config.Log)) {
	level, asJSON := new(slog.LevelVar), new(atomic.Bool)
	set = func(cfg config.Log) {
		level.Set(levelOf(cfg))
		asJSON.Store(cfg.Format == "json")
	}
	set(cfg)
	opts := &slog.HandlerOptions{Level: level}
	return slog.New(&logHandler{slog.NewTextHandler(w, opts), slog.NewJSONHandler(w, opts), asJSON}), set
}

// levelOf reads the level. The configuration has been checked: it is one that slog knows.
func levelOf(cfg config.Log) (level slog.Level) {
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// logHandler writes in the form that counts at the moment. The two have one level.
type logHandler struct {
	text, json slog.Handler
	asJSON     *atomic.Bool
}

func (h *logHandler) now() slog.Handler {
	if h.asJSON.Load() {
		return h.json
	}
	return h.text
}

// Enabled reports whether a record of that level is written.
func (h *logHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.text.Enabled(ctx, l) }

// Handle writes a record.
func (h *logHandler) Handle(ctx context.Context, r slog.Record) error { return h.now().Handle(ctx, r) }

// WithAttrs returns a handler whose records have these attributes, too.
func (h *logHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logHandler{h.text.WithAttrs(attrs), h.json.WithAttrs(attrs), h.asJSON}
}

// WithGroup returns a handler that puts the attributes of records into a group.
func (h *logHandler) WithGroup(name string) slog.Handler {
	return &logHandler{h.text.WithGroup(name), h.json.WithGroup(name), h.asJSON}
}
