package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
)

// Questions go over the broker of the node that is asked, as those for a delta do. Each is answered by one message (verifyanswer.go).

const (
	// verifyLag is for how long a node may apply nothing while it lacks what another one has shown.
	verifyLag = time.Minute
	// verifyIdle is after how long without a question the session is given back.
	verifyIdle = time.Minute
)

// verifySide is a life's part in comparisons: it answers, and asks.
type verifySide struct {
	*life
	own  *apply.Verifier
	idle *time.Timer
}

// runVerify answers others until ctx ends, and compares in the background if it is to.
func (l *life) runVerify(ctx context.Context) error {
	s := &verifySide{life: l, own: l.applier.NewVerifier(slotName(l.cfg))}
	answers := &slowAnswers{work: s.answer, last: map[string]*slowAnswer{}}
	s.idle = time.AfterFunc(verifyIdle, func() { s.own.Rest(ctx) })
	stop, err := stream.AnswerAside(ctx, l.conns[0], stream.VerifySubject(l.cfg.Cluster, l.cfg.Node), answers.answer)
	if err != nil {
		return err
	}
	l.verify.attach(s)
	l.watchRows(ctx)
	stop()
	answers.all.Wait()
	l.verify.detach(s)
	s.idle.Stop()
	s.own.Close()
	return nil
}

// answer answers one question of another node.
func (s *verifySide) answer(ctx context.Context, q *apply.VerifyQuestion) []byte {
	a, err := s.askFor(ctx, q)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		a = &apply.VerifyAnswer{Error: err.Error()}
	}
	out, err := json.Marshal(a)
	if limit := s.conns[0].MaxPayload(); err == nil && limit > 0 && int64(len(out)) > limit {
		err = fmt.Errorf("an answer of %d bytes is more than its broker takes (max_payload %d)", len(out), limit)
	}
	if err != nil {
		return verifyText(&apply.VerifyAnswer{Error: err.Error()})
	}
	return out
}

// askFor is ask about the tables and rows that the asker has.
func (s *verifySide) askFor(ctx context.Context, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
	reside := residencyOf(s.cfg)
	if q.Table != nil {
		if err := reside.keeps(q.Asker, q.Table.Schema, q.Table.Name); err != nil {
			return nil, err
		}
	}
	asked := *q
	asked.Other = true
	a, err := s.ask(ctx, &asked)
	if err == nil {
		a.Tables = slices.DeleteFunc(a.Tables, func(t *apply.VerifyTable) bool { return !reside.at(q.Asker, t.Schema, t.Name) })
	}
	return a, err
}

func (s *verifySide) ask(ctx context.Context, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
	s.idle.Reset(verifyIdle)
	return s.own.Ask(ctx, q)
}

// askers are the connections of one comparison.
type askers struct {
	*verifySide
	mu    sync.Mutex // guards what follows
	conns map[string]*nats.Conn
	met   map[string]bool // nodes that have answered
}

func (s *verifySide) askers() *askers {
	return &askers{verifySide: s, conns: map[string]*nats.Conn{}, met: map[string]bool{}}
}

func (a *askers) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, nc := range a.conns {
		nc.Close()
	}
}

// conn returns the connection to a node's broker.
func (a *askers) conn(node string) (nc *nats.Conn, met bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.conns[node] == nil {
		nc, err := a.reach(node)
		if err != nil {
			return nil, false, err
		}
		a.conns[node] = nc
	}
	return a.conns[node], a.met[node], nil
}

// askNode implements rowAsker. An answer that would come too early is asked for again.
func (a *askers) askNode(ctx context.Context, node string, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
	moved, seen := time.Now(), uint64(0)
	for {
		got, err := a.once(ctx, node, q)
		switch {
		case err != nil:
			return nil, err
		case got.Error != "":
			return nil, errors.New(got.Error)
		case !got.Late:
			return got, nil
		}
		if now := seenOf(q.After, got.Seen); now > seen {
			moved, seen = time.Now(), now
		} else if time.Since(moved) > verifyLag {
			return nil, fmt.Errorf("it lacks what other nodes have, and has applied nothing of that for %s; pgbridge status there says what it waits for", verifyLag)
		}
	}
}

// seenOf counts how many transactions of what is wanted have been seen. What is not wanted may go on while an origin waits.
func seenOf(wanted, seen origin.Vector) (n uint64) {
	for _, e := range wanted {
		n += min(seen.Seq(e.Origin), e.Seq)
	}
	return n
}

func (a *askers) once(ctx context.Context, node string, q *apply.VerifyQuestion) (*apply.VerifyAnswer, error) {
	if node == a.cfg.Node {
		return a.ask(ctx, q)
	}
	nc, met, err := a.conn(node)
	if err != nil {
		return nil, err
	}
	got, err := askSlowly(ctx, *q, met, func(ctx context.Context, text []byte) ([]byte, error) {
		return stream.Ask(ctx, nc, stream.VerifySubject(a.cfg.Cluster, node), text)
	})
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("it cannot be asked at %s: %w; let its bridge run and be reached from here, or name the others with --node",
			a.cfg.Redacted().Topology.Nodes[node], err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.met[node] = a.met[node] || err == nil
	return got, err
}

// verifyNodes are the nodes that are compared, this one first; the error is one of what the caller gave.
func (b *bridge) verifyNodes(o VerifyOptions) ([]string, error) {
	all := b.cfg.Graph().Nodes()
	known := func(node, flag string) error {
		if !slices.Contains(all, node) {
			return &configError{fmt.Sprintf("%s %s: topology.nodes has no such node; it has %s", flag, node, strings.Join(all, ", "))}
		}
		return nil
	}
	nodes := []string{b.cfg.Node}
	for _, node := range o.Nodes {
		if err := known(node, "--node"); err != nil {
			return nil, err
		}
		if node == b.cfg.Node {
			return nil, &configError{fmt.Sprintf("--node %s: that is this node, with which the others are compared; name another one", node)}
		}
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	if len(o.Nodes) == 0 {
		for _, node := range all {
			if node != b.cfg.Node {
				nodes = append(nodes, node)
			}
		}
	}
	if len(nodes) == 1 {
		return nil, &configError{"there is no other node in topology.nodes to compare this one with"}
	}
	if o.From != "" {
		if err := known(o.From, "--from"); err != nil {
			return nil, err
		}
		if !slices.Contains(nodes, o.From) {
			return nil, &configError{fmt.Sprintf("--from %s: that node is not compared; name it with --node, too", o.From)}
		}
	}
	return nodes, nil
}
