package main

import (
	"io"
	"log/slog"

	"github.com/pgbridge/pgbridge/config"
)

// newLogger makes the one logger of a bridge. The configuration has been checked: its level is one that
// slog knows.
func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
