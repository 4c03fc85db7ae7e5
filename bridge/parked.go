package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

// ParkedTransaction is a transaction of another node that was put aside because it cannot be applied here.
type ParkedTransaction = apply.ParkedTransaction

// ParkedChange is one change of it.
type ParkedChange = apply.ParkedChange

// ParkedRequest is what may be asked for parked transactions.
type ParkedRequest string

// The requests.
const (
	RetryParked   ParkedRequest = "retry"
	DiscardParked ParkedRequest = "discard"
)

// ParkedList returns what is parked at this node, the oldest first. It asks the database, so that no bridge need run.
func ParkedList(ctx context.Context, cfg *config.Config) ([]ParkedTransaction, error) {
	return apply.ParkedTransactions(ctx, cfg.Postgres.DSN)
}

// ParkedShow returns one parked transaction, named by its id or as origin:seq, with up to limit of its changes.
func ParkedShow(ctx context.Context, cfg *config.Config, name string, limit int) (*ParkedTransaction, []ParkedChange, error) {
	return apply.ShowParked(ctx, cfg.Postgres.DSN, name, limit)
}

const (
	// parkedPatience is how long a request is waited for. What a retry must wait for may take longer.
	parkedPatience = 30 * time.Second
	// Between two looks, each twice as long as the one before.
	parkedLook, parkedLookMax = 50 * time.Millisecond, 2 * time.Second
)

// ParkedOutcome is what became of a request.
type ParkedOutcome struct {
	Asked string `json:"asked,omitempty"` // the one that was asked for, as origin:seq; empty: all
	// Done are the transactions that are not parked any more, as origin:seq.
	Done []string `json:"done"`
	// Left are those that still are, with the reason.
	Left []ParkedTransaction `json:"left"`
	// Running: a bridge runs here; else the request waits for it to start.
	Running bool `json:"running"`
}

// RequestParked asks for a parked transaction to be tried again or discarded, for all of them if name is empty, and
// waits until the bridge has seen to it.
func RequestParked(ctx context.Context, cfg *config.Config, name string, request ParkedRequest) (*ParkedOutcome, error) {
	asked, err := ParkedList(ctx, cfg)
	if err != nil {
		return nil, err
	}
	o, id := &ParkedOutcome{}, int64(0)
	if name != "" {
		p, err := apply.FindParked(ctx, cfg.Postgres.DSN, name)
		if err != nil {
			return nil, err
		}
		o.Asked, id = p.Name(), p.ID
	}
	if o.Running, err = apply.RequestParked(ctx, cfg.Postgres.DSN, name, string(request)); err != nil {
		return nil, err
	}
	end := time.Now().Add(parkedPatience)
	for look := parkedLook; ; look = min(2*look, parkedLookMax) {
		here, err := ParkedList(ctx, cfg)
		if err != nil {
			return nil, err
		}
		if !o.Running || settledRequest(here, id) || time.Now().After(end) {
			o.tell(asked, here, id)
			return o, nil
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// settledRequest reports whether the bridge has seen to all that was asked for: of what an older one keeps parked, it
// cannot yet.
func settledRequest(here []ParkedTransaction, id int64) bool {
	parked := map[string]bool{}
	for i := range here {
		p := &here[i]
		kept := false
		for _, d := range p.DependsOn {
			kept = kept || parked[d]
		}
		parked[p.Name()] = true
		if p.Request != "" && !kept && (id == 0 || p.ID == id) {
			return false
		}
	}
	return true
}

// tell compares what was parked before and after.
func (o *ParkedOutcome) tell(before, after []ParkedTransaction, id int64) {
	o.Done, o.Left = []string{}, []ParkedTransaction{}
	left := map[int64]bool{}
	for _, p := range after {
		left[p.ID] = true
		if id == 0 || p.ID == id {
			o.Left = append(o.Left, p)
		}
	}
	for _, p := range before {
		if !left[p.ID] {
			o.Done = append(o.Done, p.Name())
		}
	}
}

// parkedAlarm says that transactions of an origin cannot be applied here.
func parkedAlarm(o apply.OriginStatus) Alarm {
	what := fmt.Sprintf("%d transactions of %s cannot be applied here and are", o.Parked, o.Origin)
	if o.Parked == 1 {
		what = fmt.Sprintf("a transaction of %s cannot be applied here and is", o.Origin)
	}
	return Alarm{Code: "parked", Severity: SeverityError,
		Text: what + " parked; nodes differ in these rows meanwhile, and the other nodes' streams keep all that came since",
		Mend: "pgbridge parked list shows why; mend the cause and run pgbridge parked retry --all, or give one up with pgbridge parked discard"}
}
