package bridge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/wire"
)

// Who joins, leaves or removes a node asks the bridges of the others, over their brokers. A question is JSON; an answer is a letter and
// what belongs to it.
//
//	answer = 'j' json   the answer
//	       | 'w' text   wait: not yet, and why
//	       | 'd' bytes  what stands at that offset of a page
//	       | 'e' json   the page has ended, and how
//	       | 'x' text   why there is none
const answerJSON = 'j'

// The questions.
const (
	askSeen    = "seen"   // what has the node now?
	askAllKnow = "known"  // do all but one have that?
	askTables  = "tables" // what is there to be copied?
	askParts   = "parts"  // how is a table cut into parts?
	askPage    = "page"   // begin a page; the answer is its number
	askPiece   = "piece"  // read on in a page
	askAbout   = "about"  // how far is the node with another one?
	askForget  = "forget" // wait no more for another one
)

// nodeQuestion is a question; which fields count depends on Ask.
type nodeQuestion struct {
	Ask    string         `json:"ask"`
	Node   string         `json:"node,omitempty"`   // whom it is about
	Vector []byte         `json:"vector,omitempty"` // as in a frame
	LSN    uint64         `json:"lsn,omitempty"`
	Page   apply.CopyPage `json:"page,omitzero"`
	Parts  int            `json:"parts,omitempty"`
	Rows   int64          `json:"rows,omitempty"`
	ID     uint64         `json:"id,omitempty"`
	Offset int64          `json:"offset,omitempty"`
	Seq    uint64         `json:"seq,omitempty"`
	Leaves bool           `json:"leaves,omitempty"` // it lives, and has ended its last transaction
}

// nodeSeen answers askSeen: what the node has, and up to where capture had read by then.
type nodeSeen struct {
	Vector []byte `json:"vector"`
	LSN    uint64 `json:"lsn"`
	Major  int    `json:"major"` // of its server
}

// nodeAbout answers askAbout.
type nodeAbout struct {
	apply.Here
	Lives bool `json:"lives"` // it is being read from
	Gone  bool `json:"gone"`  // it is not waited for any more
}

// nodeTables answers askTables.
type nodeTables struct {
	Tables []apply.CopyTable  `json:"tables"`
	Gone   []apply.GoneNode   `json:"gone"`
	Made   []apply.MadeChange `json:"made"`
}

// answerPatience bounds how long a question may wait, below the patience of who asks.
const answerPatience = 8 * time.Second

// answerer answers questions of other nodes' commands.
type answerer struct {
	*life
	mu    sync.Mutex // guards what follows
	pages map[uint64]*nodePage
	last  uint64
	wg    sync.WaitGroup
}

// nodePage is a page that is being given.
type nodePage struct {
	delta
	end *apply.CopyEnd // once it is done
}

// answerMembers answers until ctx ends.
func (l *life) answerMembers(ctx context.Context) error {
	g := &answerer{life: l, pages: map[uint64]*nodePage{}, last: uint64(time.Now().UnixNano())}
	stop, err := stream.AnswerAside(ctx, l.conns[0], stream.NodeSubject(l.cfg.Cluster, l.cfg.Node), g.answer)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		err = nil
	case err = <-l.forgets:
	}
	stop()
	g.mu.Lock()
	for id := range g.pages {
		g.drop(id)
	}
	g.mu.Unlock()
	g.wg.Wait()
	return err
}

func (g *answerer) answer(ctx context.Context, asker string, question []byte) []byte {
	var q nodeQuestion
	if err := json.Unmarshal(question, &q); err != nil {
		return refuse(fmt.Errorf("the question cannot be read: %w", err))
	}
	if ctx.Err() != nil {
		return refuse(errors.New("its bridge starts anew"))
	}
	if q.Ask == askPiece {
		return g.piece(asker, &q)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerPatience, &apply.NotYet{Reason: "its capture does not come along"})
	defer cancel()
	x, err := g.ask(ctx, asker, &q)
	var wait *apply.NotYet
	switch {
	case errors.As(err, &wait):
		return append([]byte{answerWait}, wait.Reason...)
	case err != nil:
		return refuse(err)
	}
	text, err := json.Marshal(x)
	if err != nil {
		return refuse(err)
	}
	return append([]byte{answerJSON}, text...)
}

// ask finds the answer.
func (g *answerer) ask(ctx context.Context, asker string, q *nodeQuestion) (any, error) {
	if q.Page.Name != "" {
		if err := residencyOf(g.cfg).keeps(asker, q.Page.Schema, q.Page.Name); err != nil {
			return nil, err
		}
	}
	switch q.Ask {
	case askSeen:
		return g.seen(ctx)
	case askAllKnow:
		since, err := vectorOf(q.Vector)
		if err != nil {
			return nil, err
		}
		if p := g.applier.ParkedCount(); p > 0 {
			return nil, fmt.Errorf("%d transactions are parked there: see to them with pgbridge parked", p)
		}
		return true, g.applier.Knows(q.Node, since, q.LSN)
	case askTables:
		return g.tables(ctx, asker)
	case askParts:
		return g.applier.CopyParts(ctx, asker, q.Page.Schema, q.Page.Name, q.Parts, q.Rows)
	case askPage:
		return g.begin(asker, q)
	case askAbout:
		here, err := g.applier.HereOf(ctx, q.Node)
		return nodeAbout{Here: here, Lives: g.lives(q.Node), Gone: g.applier.IsGone(q.Node)}, err
	case askForget:
		return true, g.forget(ctx, q)
	}
	return nil, fmt.Errorf("it does not know the question %q; its bridge is older than this one", q.Ask)
}

// tables are those that may be copied, and the schema changes that they have.
func (g *answerer) tables(ctx context.Context, asker string) (*nodeTables, error) {
	if what, setting := lacks(g.cfg, g.cfg.Node, asker); what != "" {
		return nil, fmt.Errorf("it does not have %s, which node %s is to have (%s); join from a node that has them", what, asker, setting)
	}
	made, err := g.applier.MadeChanges(ctx)
	if err != nil {
		return nil, err
	}
	tables, err := g.applier.CopyTables(ctx, slotName(g.cfg), residencyOf(g.cfg).without(asker))
	if err != nil {
		return nil, err
	}
	if again, err := g.applier.MadeChanges(ctx); err != nil || len(again) != len(made) {
		return nil, cmp.Or(err, error(&apply.NotYet{Reason: "its schema is being changed"}))
	}
	return &nodeTables{tables, g.applier.GoneNodes(), made}, nil
}

// seen is what this node has, with the stamp of its own last transaction.
func (g *answerer) seen(ctx context.Context) (*nodeSeen, error) {
	v, err := g.applier.Seen(ctx, g.capture)
	if err != nil {
		return nil, err
	}
	own := v.Seq(g.own)
	for {
		// Whose transactions stand in a frame is known with its stamp.
		if s := g.capture.Status(); s.Seq >= own {
			own := origin.Entry{Origin: g.own, Seq: s.Seq, Stamp: s.Stamp}
			seen := origin.Vector{}
			for _, e := range v {
				if e.Origin != g.own {
					seen.Advance(e)
				}
			}
			seen.Advance(own)
			return &nodeSeen{wire.AppendVector(nil, seen), g.capture.Passed(), g.applier.Major()}, nil
		}
		g.capture.Hasten()
		select {
		case <-time.After(drainTick):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func vectorOf(b []byte) (origin.Vector, error) {
	all, err := wire.ParseVectors(b, 1)
	if err != nil {
		return nil, fmt.Errorf("vector: %w", err)
	}
	return all[0], nil
}

// lives reports whether a node's own stream is being read.
func (g *answerer) lives(node string) bool {
	for _, p := range g.peers {
		at := p.at.Load()
		if p.origin.Node == node && at != nil && p.direct(at) && at.nc.IsConnected() && p.problem.Load() == nil {
			return true
		}
	}
	return false
}

// begin has a page written to a file.
func (g *answerer) begin(asker string, q *nodeQuestion) (uint64, error) {
	since, err := vectorOf(q.Vector)
	if err != nil {
		return 0, err
	}
	file, err := deltaFile(g.life)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(context.Background()) // until it is dropped
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last++
	id := g.last
	p := &nodePage{delta: delta{asker: asker, file: file, cancel: cancel}}
	p.idle = time.AfterFunc(deltaIdle, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.drop(id)
	})
	g.pages[id] = p
	g.wg.Go(func() {
		defer file.Close()
		end, err := g.applier.CopyPage(ctx, asker, q.Page, since, p)
		p.mu.Lock()
		p.done, p.err, p.end = true, err, end
		p.mu.Unlock()
		<-ctx.Done()
	})
	return id, nil
}

// drop needs mu held.
func (g *answerer) drop(id uint64) {
	if p := g.pages[id]; p != nil {
		p.idle.Stop()
		p.cancel()
		delete(g.pages, id)
	}
}

// piece reads on in a page, and drops it at its end.
func (g *answerer) piece(asker string, q *nodeQuestion) []byte {
	g.mu.Lock()
	p := g.pages[q.ID]
	g.mu.Unlock()
	if p == nil || p.asker != asker || q.Offset < 0 {
		return refuse(errors.New("it does not know of this page; its bridge may have started anew"))
	}
	p.idle.Reset(deltaIdle)
	a := p.read(q.Offset)
	if a[0] == answerEnd || a[0] == answerRefuse {
		g.mu.Lock()
		g.drop(q.ID)
		g.mu.Unlock()
	}
	if a[0] == answerEnd {
		text, err := json.Marshal(p.end)
		if err != nil {
			return refuse(err)
		}
		return append(a, text...)
	}
	return a
}
