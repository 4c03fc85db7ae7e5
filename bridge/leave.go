package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
)

// MemberOptions say how a node leaves or is removed.
type MemberOptions struct {
	Logger *slog.Logger
	Tell   func(text string) // called with what is being done; nil: nobody is told
}

// parting is one run of a command that has nodes forget one.
type parting struct {
	*asker
	node   string
	others []string // who is to forget it
	tell   func(string)
}

// newParting leaves out those that are gone already, by what gone says.
func newParting(cfg *config.Config, node string, gone map[string]apply.GoneNode, o MemberOptions) *parting {
	p := &parting{asker: newAsker(cfg, o.Logger), node: node, tell: o.Tell}
	if p.tell == nil {
		p.tell = func(string) {}
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Topology.Nodes)) {
		if _, ok := gone[name]; name != node && !ok {
			p.others = append(p.others, name)
		}
	}
	return p
}

// RemoveNode has all other nodes, of which this one is one, wait for a dead one no more.
func RemoveNode(ctx context.Context, cfg *config.Config, node string, o MemberOptions) error {
	switch {
	case node == cfg.Node:
		return &configError{fmt.Sprintf("node %s is this one; run pgbridge node leave", node)}
	case cfg.Topology.Nodes[node] == "":
		return &configError{fmt.Sprintf("there is no node %q in topology.nodes; name one of %s", node, strings.Join(peerNames(cfg), ", "))}
	}
	gone, err := goneOf(ctx, cfg)
	if err != nil {
		return err
	}
	p := newParting(cfg, node, gone, o)
	defer p.close()
	seq, err := p.level(ctx)
	if err != nil {
		return err
	}
	return p.forgotten(ctx, seq)
}

// goneOf is readGone for a command.
func goneOf(ctx context.Context, cfg *config.Config) (map[string]apply.GoneNode, error) {
	p := capture.NewPrimary(cfg.Postgres.DSN)
	defer p.Close()
	return readGone(ctx, p)
}

// level returns the last transaction of the dead node, which all others must have.
func (p *parting) level(ctx context.Context) (uint64, error) {
	var seq uint64
	has := make([]string, len(p.others))
	differ := false
	gone := false
	for i, name := range p.others {
		var a nodeAbout
		if err := p.patiently(ctx, name, &nodeQuestion{Ask: askAbout, Node: p.node}, &a, p.tell); err != nil {
			return 0, fmt.Errorf("%w; all nodes but %s must run, or be removed first", err, p.node)
		}
		switch {
		case a.Lives && !a.Gone:
			return 0, &configError{fmt.Sprintf("node %s lives: node %s reads its stream; run pgbridge node leave there, or stop its bridge and its broker", p.node, name)}
		case a.Parked > 0:
			return 0, fmt.Errorf("%d transactions of %s are parked at node %s; see to them there with pgbridge parked, and run this again", a.Parked, p.node, name)
		}
		gone = gone || a.Gone
		has[i] = fmt.Sprintf("%s %d", name, a.Received)
		differ = differ || a.Received != a.Applied || i > 0 && a.Applied != seq
		seq = a.Applied
	}
	if differ {
		return 0, fmt.Errorf("nodes have different transactions of %s (%s): wait until they have handed on what some lack, and run this again", p.node, strings.Join(has, ", "))
	}
	if gone {
		p.tell("some nodes have forgotten it before; goes on")
	}
	return seq, nil
}

// forgotten has all others forget the node, whose last transaction they have, and returns when they work without it.
func (p *parting) forgotten(ctx context.Context, seq uint64) error {
	for _, name := range p.others {
		q := &nodeQuestion{Ask: askForget, Node: p.node, Seq: seq, Leaves: p.node == p.cfg.Node}
		if err := p.patiently(ctx, name, q, nil, p.tell); err != nil {
			return fmt.Errorf("%w; run this again, which goes on from there", err)
		}
	}
	for _, name := range p.others {
		for { // its bridge's parts start anew
			var a nodeAbout
			err := p.patiently(ctx, name, &nodeQuestion{Ask: askAbout, Node: p.node}, &a, p.tell)
			if err == nil && a.Gone {
				break
			}
			select {
			case <-time.After(deltaPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// Leave has the node of this configuration, whose bridge runs, leave the cluster. What is done first is that its bridge ends for good: from
// then on a run that was interrupted needs no more than to be given again.
func Leave(ctx context.Context, cfg *config.Config, o MemberOptions) error {
	all, err := goneOf(ctx, cfg)
	if err != nil {
		return err
	}
	p := newParting(cfg, cfg.Node, all, o)
	defer p.close()
	conn, err := pgx.Connect(ctx, cfg.Postgres.DSN)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	own, gone := all[cfg.Node]
	if !gone {
		if own.Seq, err = p.end(ctx, conn); err != nil {
			return err
		}
	}
	if err := p.bridgeEnded(ctx); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "COMMIT"); err != nil { // nobody reads what is written now
		return fmt.Errorf("let writers in: %w", err)
	}
	p.tell("tells the others")
	if err := p.forgotten(ctx, own.Seq); err != nil {
		return err
	}
	return p.dropSlot(ctx, conn)
}

// end has the node's bridge end for good when all others have all that it has, and returns its last transaction. Writers are kept out until conn's transaction ends.
func (p *parting) end(ctx context.Context, conn *pgx.Conn) (uint64, error) {
	own := &nodeSeen{}
	if err := p.patiently(ctx, p.node, &nodeQuestion{Ask: askSeen}, own, p.tell); err != nil {
		return 0, fmt.Errorf("the bridge of node %s must run, and have its last transactions published: %w", p.node, err)
	}
	if _, err := p.haveAll(ctx, own); err != nil {
		return 0, err
	}
	if err := p.keepOut(ctx, conn); err != nil {
		return 0, err
	}
	if err := p.patiently(ctx, p.node, &nodeQuestion{Ask: askSeen}, own, p.tell); err != nil {
		return 0, err
	}
	seq, err := p.haveAll(ctx, own)
	if err != nil {
		return 0, err
	}
	p.tell("ends its bridge")
	q := &nodeQuestion{Ask: askForget, Node: p.node, Seq: seq, Leaves: true}
	if err := p.patiently(ctx, p.node, q, nil, p.tell); err != nil {
		return 0, err
	}
	return seq, nil
}

// haveAll returns when all others have what this node has, with the last transaction of its own.
func (p *parting) haveAll(ctx context.Context, own *nodeSeen) (uint64, error) {
	v, err := vectorOf(own.Vector)
	if err != nil {
		return 0, err
	}
	for _, name := range p.others {
		for {
			var seen nodeSeen
			if err := p.patiently(ctx, name, &nodeQuestion{Ask: askSeen}, &seen, p.tell); err != nil {
				return 0, fmt.Errorf("%w; all nodes must run when one leaves, or be removed first", err)
			}
			theirs, err := vectorOf(seen.Vector)
			if err != nil {
				return 0, err
			}
			e, lacks := theirs.Lacks(v)
			if !lacks {
				break
			}
			p.tell(fmt.Sprintf("waits until node %s has transaction %d of %s", name, e.Seq, e.Origin))
			select {
			case <-time.After(deltaPause):
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
	}
	return v.Seq(origin.Origin{Node: p.node, Epoch: 1}), nil
}

// writersPatience is how long transactions of users may take to end when a node leaves.
const writersPatience = 30 * time.Second

// keepOut has writes to replicated tables wait.
func (p *parting) keepOut(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1`, slotName(p.cfg))
	if err != nil {
		return fmt.Errorf("read published tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(tables) == 0 {
		return err
	}
	p.tell("keeps writers out")
	_, err = conn.Exec(ctx, fmt.Sprintf("BEGIN; SET LOCAL lock_timeout = %d; SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE",
		writersPatience.Milliseconds(), strings.Join(tables, ", ")))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" {
		return fmt.Errorf("a transaction that writes to replicated tables does not end within %s; see pg_stat_activity, and run this again", writersPatience)
	}
	if err != nil {
		return fmt.Errorf("keep writers out: %w", err)
	}
	return nil
}

// bridgeEnded returns when nobody reads the slot any more.
func (p *parting) bridgeEnded(ctx context.Context) error {
	for {
		s, err := capture.ReadSlot(ctx, p.primary, slotName(p.cfg))
		if err != nil || s.State != "active" {
			return err
		}
		select {
		case <-time.After(deltaPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// dropSlot drops publication and slot.
func (p *parting) dropSlot(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", slotName(p.cfg))
	if err == nil {
		_, err = conn.Exec(ctx, "DROP PUBLICATION IF EXISTS "+pgx.Identifier{slotName(p.cfg)}.Sanitize())
	}
	if err != nil {
		return fmt.Errorf("drop slot and publication: %w", err)
	}
	return nil
}
