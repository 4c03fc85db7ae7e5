package demo

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestAwait(t *testing.T) {
	broken := errors.New("broken")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name    string
		ctx     context.Context
		timeout time.Duration
		answers []string // the last one again and again
		fails   error    // after the answers
		want    string   // the error's text, "" for none
	}{
		{"at once", t.Context(), time.Minute, []string{""}, nil, ""},
		{"in the end", t.Context(), time.Minute, []string{"one is missing", "one is missing", ""}, nil, ""},
		{"too late", t.Context(), 1, []string{"one is missing"}, nil, "after 1ns: one is missing"},
		{"broken", t.Context(), time.Minute, []string{"one is missing"}, broken, "broken"},
		{"cancelled", cancelled, time.Minute, []string{"one is missing"}, nil, "context canceled"},
	} {
		calls := 0
		err := await(c.ctx, c.timeout, func(context.Context) (string, error) {
			calls++
			if c.fails != nil && calls > len(c.answers) {
				return "", c.fails
			}
			return c.answers[min(calls, len(c.answers))-1], nil
		})
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
