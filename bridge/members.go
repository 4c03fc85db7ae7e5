package bridge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/stream"
)

// outcast means that this node has left, or was removed: nobody reads what it writes.
type outcast struct{ text string }

func (e *outcast) Error() string { return e.text }

// ExitCode is that of a wrong configuration.
func (e *outcast) ExitCode() int { return 2 }

// errForgets ends a life when a node is gone, so that the next one does without it.
var errForgets = errors.New("a node is gone")

// copying returns an error while rows are being copied to a node that joins: a slot that is made now would come too early. A server that
// does not answer is met again at once.
func copying(ctx context.Context, cfg *config.Config, p *capture.Primary) error {
	j, err := readJoining(ctx, p)
	if err != nil || j == nil || j.State != apply.Copying {
		return nil
	}
	return fmt.Errorf("node %s is being joined, and %d of about %d rows are copied; wait for pgbridge node join to end, or run it again", cfg.Node, j.Rows, j.About)
}

// readJoining is apply.ReadJoining of a primary.
func readJoining(ctx context.Context, p *capture.Primary) (j *apply.Joining, err error) {
	err = p.Ask(ctx, func(conn *pgx.Conn) error {
		j, err = apply.ReadJoining(ctx, conn)
		return err
	})
	return j, err
}

// readGone is apply.ReadGone of a primary.
func readGone(ctx context.Context, p *capture.Primary) (gone map[string]apply.GoneNode, err error) {
	err = p.Ask(ctx, func(conn *pgx.Conn) error {
		gone, err = apply.ReadGone(ctx, conn)
		return err
	})
	return gone, err
}

// checkGone refuses to run for a node that is gone, whose streams nobody needs. A server that does not answer is met again at once.
func (l *life) checkGone(ctx context.Context) error {
	gone, err := readGone(ctx, l.primary)
	if _, own := gone[l.cfg.Node]; err != nil || !own {
		return nil
	}
	nc, err := l.connectOwn(ctx)
	if err != nil {
		return err
	}
	for _, name := range l.cfg.Graph().Nodes() {
		if err := stream.Drop(ctx, nc, l.cfg.Cluster, l.cfg.Node, name); err != nil {
			return err
		}
	}
	return &outcast{fmt.Sprintf("node %s has left cluster %s; its data are its own now. To use the database for another node, run DROP SCHEMA pgbridge CASCADE there and give it "+
		"another name", l.cfg.Node, l.cfg.Cluster)}
}

// checkMembership finds out whether this node has yet to end joining, and drops what it has handed on of nodes that are gone.
func (l *life) checkMembership(ctx context.Context) (err error) {
	if l.joining, err = l.applier.Joining(ctx); err != nil {
		return err
	}
	gone := l.applier.GoneNodes()
	if len(gone) == 0 {
		return nil
	}
	nc, err := l.connectOwn(ctx)
	if err != nil {
		return err
	}
	for _, n := range gone {
		if err := stream.Drop(ctx, nc, l.cfg.Cluster, l.cfg.Node, n.Node); err != nil {
			return err
		}
	}
	return nil
}

// wanted looks before a node is read whether this one was removed there.
func (p *peer) wanted(ctx context.Context, u *upstream) error {
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	notes, err := u.reader.Notes(short)
	if err != nil {
		return nil // that is met again when it is read
	}
	return p.checkWanted(notes, u.name)
}

func (p *peer) checkWanted(notes map[string]string, from string) error {
	if !slices.Contains(strings.Fields(notes[goneNote]), p.cfg.Node) {
		return nil
	}
	return &outcast{fmt.Sprintf("node %s was removed from cluster %s, as node %s says: nobody reads what it writes. Let its database join under another name "+
		"(docs/join.md); rows that its users wrote since are there alone", p.cfg.Node, p.cfg.Cluster, from)}
}

// joins reports whether this node has yet to take in what came while rows were copied.
func (l *life) joins() bool { return l.joining != nil && l.joining.State == apply.Copied }

// errFetched ends a life so that the next one takes in what came while rows were copied.
var errFetched = errors.New("what came while rows were copied is here")

// fetchJoin fetches what came while rows were copied. It always ends the life.
func (l *life) fetchJoin(ctx context.Context) error {
	donor := l.joining.Donor
	nc, err := l.reach(donor)
	if err != nil {
		return err
	}
	defer nc.Close()
	for {
		err := l.fetch(ctx, &upstream{name: donor, nc: nc})
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return errFetched
		}
		l.log.Warn("what came while rows were copied cannot be had yet", "from", donor, "err", err.Error())
		select {
		case <-time.After(resyncPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// forget notes that a node is gone, with its last transaction, and ends the life.
func (g *answerer) forget(ctx context.Context, q *nodeQuestion) error {
	if g.applier.IsGone(q.Node) {
		return nil
	}
	if !g.cfg.Graph().Has(q.Node) {
		return fmt.Errorf("there is no node %s in topology.nodes", q.Node)
	}
	if !q.Leaves && g.lives(q.Node) {
		return fmt.Errorf("node %s lives: its stream is being read; run pgbridge node leave there, or stop its bridge and its broker", q.Node)
	}
	if err := g.applier.GoneFrom(ctx, q.Node, q.Seq); err != nil {
		return err
	}
	g.log.Warn("node is gone, and is waited for no more", "node", q.Node, "seq", q.Seq)
	select {
	case g.forgets <- errForgets:
	default:
	}
	return nil
}

// goneAlarms tell of nodes that are gone and stand in the configuration.
func (l *life) goneAlarms() (all []Alarm) {
	for _, n := range l.applier.GoneNodes() {
		if l.cfg.Graph().Has(n.Node) {
			all = append(all, Alarm{Code: "node-gone", Severity: SeverityWarning, Text: fmt.Sprintf("node %s is gone, and stands in topology.nodes", n.Node),
				Mend: "take it out of the configuration of all nodes, and start their bridges again one after the other"})
		}
	}
	return all
}
