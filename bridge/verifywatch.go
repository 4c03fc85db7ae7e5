package bridge

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// watchRows compares this node with the others in the background until ctx ends, if the configuration says so.
func (l *life) watchRows(ctx context.Context) {
	var begun time.Time
	ended := time.Now()
	if r := l.verify.report(); r != nil { // of an earlier life
		begun, ended = r.At, time.Time{}
	}
	for {
		cfg, changed := l.settings.get()
		if !untilDue(ctx, cfg.Verify.Every, begun, ended, changed) {
			if ctx.Err() != nil {
				return
			}
			continue
		}
		begun = time.Now()
		_, err := l.compare(ctx, VerifyOptions{Rate: cfg.Verify.RowsPerSecond, Limit: verifyShown}, false, func(VerifyProgress) {})
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errVerifyYields), errors.Is(err, errVerifyBusy):
		case err != nil:
			l.verify.keep(nil, err)
			l.log.Warn("nodes cannot be compared", "err", err.Error())
		}
		ended = time.Now()
	}
}

// untilDue waits until nodes are to be compared again, or reports false when ctx has ended or the configuration has changed.
func untilDue(ctx context.Context, every time.Duration, begun, ended time.Time, changed <-chan struct{}) bool {
	var due <-chan time.Time // never
	if every > 0 {
		due = time.After(max(time.Until(begun.Add(every)), time.Until(ended.Add(min(every, verifySoon)))))
	}
	select {
	case <-due:
		return true
	case <-changed:
	case <-ctx.Done():
	}
	return false
}

const (
	// verifySoon is how soon nodes are compared after a start, at most: others start, too.
	verifySoon = 10 * time.Second
	// verifyShown is how many rows status shows.
	verifyShown = 10
)

func (v *verifies) report() *VerifyReport {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last
}

// RowsReport is what the last comparison of all nodes and tables has found.
type RowsReport struct {
	At          time.Time `json:"at,omitzero"` // when it began
	Seconds     float64   `json:"seconds"`
	Rows        int64     `json:"rows"`
	Differences int       `json:"differences"` // rows that are not mended
	Explained   int       `json:"explained"`
	Skipped     int       `json:"skipped"` // tables and columns that were not compared
	// Waiting says why the last one in the background could not be made.
	Waiting string `json:"waiting,omitempty"`
}

// reportRows tells of the last comparison; nil if there was none.
func (v *verifies) reportRows() (*RowsReport, *Alarm) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last == nil && v.failed == "" {
		return nil, nil
	}
	r := &RowsReport{Waiting: v.failed}
	l := v.last
	if l == nil {
		return r, nil
	}
	r.At, r.Seconds, r.Rows, r.Differences, r.Explained, r.Skipped = l.At.UTC(), l.Seconds, l.Rows, l.Differences-l.Mended, len(l.Explained), len(l.Skipped)
	if r.Differences == 0 {
		return r, nil
	}
	of := ""
	for _, t := range l.Tables {
		if n := t.Differences - t.Mended; n > 0 && of == "" {
			of = fmt.Sprintf(", %d of them of table %s", n, t.Table)
		}
	}
	return r, &Alarm{Code: "rows-differ", Severity: SeverityError,
		Text: fmt.Sprintf("%d rows are not the same on all nodes%s, as of %s", r.Differences, of, r.At.Format(time.RFC3339)),
		Mend: "pgbridge verify shows them, pgbridge verify --repair mends them (docs/verify.md)"}
}
