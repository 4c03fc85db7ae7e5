package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/config"
)

// SchemaChange is a change of the schema that was made through pgbridge.ddl.
type SchemaChange = apply.SchemaChange

// SchemaOptions say how a schema change is made.
type SchemaOptions struct {
	// Breaking confirms a change that takes away what others may be writing. It is made when all nodes have what is here.
	Breaking bool
	Wait     time.Duration // how long to wait for that
}

// MaxSchemaWait bounds how long a breaking change may wait for the other nodes.
const MaxSchemaWait = 24 * time.Hour

// ErrNodesBehind means that some nodes do not have what is here, so that a breaking change is not made.
var ErrNodesBehind = errors.New("not all nodes have what is committed here, and a breaking change is not made before")

// ChangeSchema makes a schema change here and, through the stream, on all other nodes. It returns the change's number here. A
// breaking one asks the bridge that runs here for the other nodes; ErrNodesBehind names those that keep it from being made.
func ChangeSchema(ctx context.Context, cfg *config.Config, sql string, o SchemaOptions) (int64, error) {
	if o.Wait < 0 || o.Wait > MaxSchemaWait {
		return 0, &configError{fmt.Sprintf("a wait of %s: it is 0s to %s", o.Wait, MaxSchemaWait)}
	}
	if o.Breaking {
		if err := awaitNodes(ctx, cfg, o.Wait); err != nil {
			return 0, err
		}
	}
	return apply.ChangeSchema(ctx, cfg.Postgres.DSN, sql, o.Breaking)
}

// SchemaChanges lists what was changed through pgbridge.ddl and is made here, the oldest first.
func SchemaChanges(ctx context.Context, cfg *config.Config) ([]SchemaChange, error) {
	return apply.SchemaChanges(ctx, cfg.Postgres.DSN)
}

// AutomaticSchema has the schema changes that are made in the node's database travel to the other nodes by themselves, or not any more.
func AutomaticSchema(ctx context.Context, cfg *config.Config, on bool) error {
	return apply.SetAutomatic(ctx, cfg.Postgres.DSN, on)
}

// SchemaDone has a schema change of another node, as origin:seq, count as made here, since an operator has made it by hand.
func SchemaDone(ctx context.Context, cfg *config.Config, name string) error {
	return apply.MarkDone(ctx, cfg.Postgres.DSN, name)
}

// behindLook is the time between two looks at who is behind.
const behindLook = 200 * time.Millisecond

// behind is what a bridge answers to the question who lacks own transactions.
type behind struct {
	Seq   uint64   `json:"seq"`   // captured
	Nodes []string `json:"nodes"` // that are away, or have not told of having seen all up to the seq that was asked for
}

// awaitNodes waits until all nodes have what is committed here now.
func awaitNodes(ctx context.Context, cfg *config.Config, patience time.Duration) error {
	end := time.Now().Add(patience)
	upTo := uint64(0)
	for {
		b, err := askBehind(ctx, cfg, upTo)
		if err != nil {
			return err
		}
		if upTo = b.Seq; len(b.Nodes) == 0 {
			return nil
		}
		if !time.Now().Before(end) {
			return fmt.Errorf("%w: %s; bring them back, or wait for longer with --wait", ErrNodesBehind, strings.Join(b.Nodes, ", "))
		}
		select {
		case <-time.After(behindLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func askBehind(ctx context.Context, cfg *config.Config, upTo uint64) (*behind, error) {
	resp, err := ask(ctx, cfg, fmt.Sprintf("/behind?seq=%d", upTo))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	b := &behind{}
	if err := json.NewDecoder(resp.Body).Decode(b); err != nil {
		return nil, fmt.Errorf("read who is behind: %w", err)
	}
	return b, nil
}

// serveBehind tells who lacks own transactions up to the seq of the question, 0 for all that is committed now.
func (b *bridge) serveBehind(w http.ResponseWriter, r *http.Request) {
	l, err := b.current.get()
	if l == nil {
		http.Error(w, errors.Join(errors.New(starting), err).Error(), http.StatusServiceUnavailable)
		return
	}
	upTo, err := strconv.ParseUint(r.FormValue("seq"), 10, 64)
	if err != nil {
		http.Error(w, "seq is not a number", http.StatusBadRequest)
		return
	}
	if upTo == 0 {
		ctx, cancel := context.WithTimeoutCause(r.Context(), tokenPatience, errors.New("local changes are not read"))
		defer cancel()
		v, err := l.applier.Seen(ctx, l.capture)
		if err != nil {
			http.Error(w, "nobody can tell who is behind: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		upTo = v.Seq(l.own)
	}
	away := l.away()
	answer := behind{Seq: upTo, Nodes: []string{}}
	for _, node := range peerNames(l.cfg) {
		switch seen := l.applier.SeenBy(node); {
		case slices.Contains(away, node):
			answer.Nodes = append(answer.Nodes, node+" (away)")
		case seen < upTo:
			answer.Nodes = append(answer.Nodes, fmt.Sprintf("%s (has %d of %d transactions)", node, seen, upTo))
		}
	}
	json.NewEncoder(w).Encode(answer)
}
