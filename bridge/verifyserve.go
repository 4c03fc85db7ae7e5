package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/config"
)

// verifies is what a bridge knows of comparisons, across lives.
type verifies struct {
	mu     sync.Mutex // guards what follows
	side   *verifySide
	cancel context.CancelCauseFunc // of the one that runs; nil: none does
	person bool                    // it was asked for by a person
	ended  chan struct{}           // closed when it has ended
	last   *VerifyReport           // of all nodes and tables; nil: there was none yet
	failed string                  // why the last one in the background failed; empty: it did not
}

func (v *verifies) attach(s *verifySide) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.side = s
}

// detach ends what runs, and waits for it.
func (v *verifies) detach(s *verifySide) {
	v.mu.Lock()
	ended := v.ended
	if v.side == s {
		v.side = nil
	}
	if v.cancel != nil {
		v.cancel(errVerifyEnds)
	}
	v.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

var (
	// errVerifyEnds ends a comparison when the bridge stops or starts anew.
	errVerifyEnds = errors.New("the bridge stops or starts anew; compare again")
	// errVerifyYields ends one in the background when a person asks for one.
	errVerifyYields = errors.New("somebody else compares")
	// errVerifyBusy refuses a second one.
	errVerifyBusy = errors.New("a comparison that somebody has asked for runs on this node already; wait for it, or end it there")
)

// begin lets a comparison run, until done is called.
func (v *verifies) begin(ctx context.Context, person bool) (_ context.Context, s *verifySide, done func(), err error) {
	for {
		v.mu.Lock()
		if v.side == nil {
			v.mu.Unlock()
			return nil, nil, nil, errors.New(starting)
		}
		if v.cancel == nil {
			break
		}
		ended := v.ended
		if v.person || !person {
			v.mu.Unlock()
			return nil, nil, nil, errVerifyBusy
		}
		v.cancel(errVerifyYields)
		v.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, nil, nil, context.Cause(ctx)
		}
	}
	defer v.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	v.cancel, v.person, v.ended = cancel, person, ended
	return ctx, v.side, func() {
		cancel(nil)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.cancel, v.ended = nil, nil
		close(ended)
	}, nil
}

// keep remembers the report of all nodes and tables for status.
func (v *verifies) keep(r *VerifyReport, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed = ""; err != nil {
		v.failed = err.Error()
		return
	}
	v.last = r
}

// compare runs one comparison.
func (b *bridge) compare(ctx context.Context, o VerifyOptions, person bool, tell func(VerifyProgress)) (*VerifyReport, error) {
	nodes, err := b.verifyNodes(o)
	if err != nil {
		return nil, err
	}
	ctx, s, done, err := b.verify.begin(ctx, person)
	if err != nil {
		return nil, err
	}
	defer done()
	a := s.askers()
	defer a.close()
	r, err := residencyOf(b.cfg).compare(ctx, placedOf(b.cfg), columnsOf(b.cfg), a.askNode, nodes, o, tell)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil && o.Table == "" && len(nodes) == len(b.cfg.Topology.Nodes) {
		b.verify.keep(r, nil)
	}
	if err == nil {
		b.log.Info("nodes compared", "nodes", strings.Join(nodes, ","), "rows", r.Rows, "differences", r.Differences, "mended", r.Mended, "took", time.Since(r.At).Round(time.Millisecond))
	}
	return r, err
}

// verifyLine is one line of the answer to a person who has nodes compared: the last one has the report, or an error.
type verifyLine struct {
	Progress *VerifyProgress `json:"progress,omitempty"`
	Report   *VerifyReport   `json:"report,omitempty"`
	Error    string          `json:"error,omitempty"`
	Usage    bool            `json:"usage,omitempty"` // the error is in what was asked for
}

// tellEach is how often progress is told.
const tellEach = 500 * time.Millisecond

// nowAndThen tells the first progress, and one in each tellEach.
func nowAndThen(tell func(VerifyProgress)) func(VerifyProgress) {
	var told time.Time
	return func(p VerifyProgress) {
		if time.Since(told) >= tellEach {
			told = time.Now()
			tell(p)
		}
	}
}

// serveVerify answers on the status socket only: whoever can reach that may write.
func (b *bridge) serveVerify(w http.ResponseWriter, r *http.Request) {
	o, err := parseVerify(r)
	enc, control := json.NewEncoder(w), http.NewResponseController(w)
	send := func(l verifyLine) {
		_ = control.SetWriteDeadline(time.Now().Add(time.Minute)) // else the answer ends with the server's own
		_ = enc.Encode(l)                                         // who has gone ends the request's context
		_ = control.Flush()
	}
	var report *VerifyReport
	if err == nil {
		send(verifyLine{Progress: &VerifyProgress{}})
		report, err = b.compare(r.Context(), o, true, nowAndThen(func(p VerifyProgress) { send(verifyLine{Progress: &p}) }))
	}
	if err != nil {
		var exit interface{ ExitCode() int }
		send(verifyLine{Error: err.Error(), Usage: errors.As(err, &exit) && exit.ExitCode() == 2})
		return
	}
	send(verifyLine{Report: report})
}

func parseVerify(r *http.Request) (o VerifyOptions, err error) {
	o = VerifyOptions{Table: r.FormValue("table"), From: r.FormValue("from"), Repair: r.FormValue("repair") == "true"}
	o.Nodes = r.Form["node"] // which FormValue has read
	for name, to := range map[string]*int{"rate": &o.Rate, "limit": &o.Limit} {
		if *to, err = strconv.Atoi(r.FormValue(name)); err != nil {
			return o, &configError{fmt.Sprintf("%s %q is not a number", name, r.FormValue(name))}
		}
	}
	return o, nil
}

// Verify has the bridge that runs with this configuration compare its node with others. ErrNotRunning if none does.
func Verify(ctx context.Context, cfg *config.Config, o VerifyOptions, tell func(VerifyProgress)) (*VerifyReport, error) {
	form := url.Values{"rate": {strconv.Itoa(o.Rate)}, "limit": {strconv.Itoa(o.Limit)}, "repair": {strconv.FormatBool(o.Repair)},
		"table": {o.Table}, "from": {o.From}, "node": o.Nodes}
	resp, err := send(ctx, cfg, http.MethodPost, "/verify?"+form.Encode())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the bridge that runs here cannot compare nodes (%s); is it as new as this command?", resp.Status)
	}
	dec := json.NewDecoder(resp.Body)
	for {
		var l verifyLine
		if err := dec.Decode(&l); err != nil {
			return nil, fmt.Errorf("read what is compared from %s: %w; the bridge's log may say why it has ended", socketPath(cfg.DataDir), err)
		}
		switch {
		case l.Error != "" && l.Usage:
			return nil, &configError{l.Error}
		case l.Error != "":
			return nil, errors.New(l.Error)
		case l.Report != nil:
			return l.Report, nil
		case l.Progress != nil:
			tell(*l.Progress)
		}
	}
}
