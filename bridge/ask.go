package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// askPatience bounds one answer.
const askPatience = 10 * time.Second

// asker asks the bridges of other nodes for a command.
type asker struct {
	*bridge
	conns map[string]*nats.Conn
}

func newAsker(cfg *config.Config, log *slog.Logger) *asker {
	if log == nil {
		log = slog.Default()
	}
	return &asker{bridge: &bridge{cfg: cfg, primary: capture.NewPrimary(cfg.Postgres.DSN), log: log, started: time.Now()}, conns: map[string]*nats.Conn{}}
}

func (a *asker) close() {
	a.primary.Close()
	for _, nc := range a.conns {
		nc.Close()
	}
}

// conn returns the connection to a node's broker, which is there.
func (a *asker) conn(ctx context.Context, node string) (*nats.Conn, error) {
	nc := a.conns[node]
	if nc == nil {
		var err error
		if nc, err = a.reachNode(node); err != nil {
			return nil, err
		}
		a.conns[node] = nc
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	for !nc.IsConnected() {
		select {
		case <-time.After(drainTick):
		case <-ctx.Done():
			return nil, fmt.Errorf("node %s is not reached at %s; does its bridge run?", node, a.cfg.Redacted().Topology.Nodes[node])
		}
	}
	return nc, nil
}

// reply is what a node says.
type reply struct {
	kind byte
	body []byte
}

// send asks once. The error is a NotYet if the node asks to wait.
func (a *asker) send(ctx context.Context, node string, q *nodeQuestion) (reply, error) {
	nc, err := a.conn(ctx, node)
	if err != nil {
		return reply{}, err
	}
	return sendOn(ctx, nc, a.cfg.Cluster, node, q)
}

func sendOn(ctx context.Context, nc *nats.Conn, cluster, node string, q *nodeQuestion) (reply, error) {
	text, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	short, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	b, err := stream.Ask(short, nc, stream.NodeSubject(cluster, node), text)
	switch {
	case err != nil && ctx.Err() != nil:
		return reply{}, context.Cause(ctx)
	case err != nil:
		return reply{}, fmt.Errorf("ask node %s: %w", node, err)
	case len(b) == 0:
		return reply{}, fmt.Errorf("ask node %s: its answer is empty", node)
	case b[0] == answerRefuse:
		return reply{}, fmt.Errorf("node %s: %w", node, &refusedAnswer{string(b[1:])})
	case b[0] == answerWait && q.Ask != askPiece:
		return reply{}, &apply.NotYet{Reason: string(b[1:])}
	}
	return reply{b[0], b[1:]}, nil
}

// refusedAnswer is why a node gives no answer.
type refusedAnswer struct{ text string }

func (e *refusedAnswer) Error() string { return e.text }

// ask asks once and decodes the answer into x.
func (a *asker) ask(ctx context.Context, node string, q *nodeQuestion, x any) error {
	r, err := a.send(ctx, node, q)
	if err == nil && r.kind != answerJSON {
		err = fmt.Errorf("ask node %s: its answer %q cannot be understood", node, r.kind)
	}
	if err == nil && x != nil {
		err = json.Unmarshal(r.body, x)
	}
	return err
}

// patiently asks until there is nothing to wait for any more, and tells what is waited for.
func (a *asker) patiently(ctx context.Context, node string, q *nodeQuestion, x any, tell func(string)) error {
	for {
		err := a.ask(ctx, node, q, x)
		var wait *apply.NotYet
		if !errors.As(err, &wait) {
			return err
		}
		tell(wait.Reason)
		select {
		case <-time.After(deltaPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// pagePause is the time from one question to the next while a page is being read.
const pagePause = 10 * time.Millisecond

// page has a node give a page, and writes it to out.
func (a *asker) page(ctx context.Context, node string, q *nodeQuestion, out io.Writer) (size int64, end *apply.CopyEnd, err error) {
	nc := a.conns[node]
	r, err := sendOn(ctx, nc, a.cfg.Cluster, node, q)
	if err != nil {
		return 0, nil, err
	}
	piece := nodeQuestion{Ask: askPiece}
	if err := json.Unmarshal(r.body, &piece.ID); err != nil {
		return 0, nil, fmt.Errorf("ask node %s: %w", node, err)
	}
	for {
		piece.Offset = size
		r, err := sendOn(ctx, nc, a.cfg.Cluster, node, &piece)
		if err != nil {
			return 0, nil, err
		}
		switch r.kind {
		case answerData:
			if _, err := out.Write(r.body); err != nil {
				return 0, nil, fmt.Errorf("spool a page: %w; make room in data_dir", err)
			}
			size += int64(len(r.body))
		case answerEnd:
			end := &apply.CopyEnd{}
			return size, end, json.Unmarshal(r.body, end)
		case answerWait:
			select {
			case <-time.After(pagePause):
			case <-ctx.Done():
				return 0, nil, context.Cause(ctx)
			}
		default:
			return 0, nil, fmt.Errorf("ask node %s: its answer %q cannot be understood", node, r.kind)
		}
	}
}
