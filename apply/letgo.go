package apply

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// Own frames may have to go from the stream while nodes that are away lack them. What this node must know of its own transactions
// all the same, as long as such a node's older ones may come (PROOF.md R22), it reads from these frames when it starts. So that is
// put into the database before they go: what they deleted among the other tombstones, the rest as capture has it.

// LetGo is what own frames said that are about to go.
type LetGo struct {
	StreamSeq uint64 // below this they go
	Seq       uint64 // the last own transaction in them
	Stamp     origin.Stamp
	Buried    []Buried
	Gist      []byte // capture's
	Away      []string
}

// Buried is what one own transaction deleted.
type Buried struct {
	Seq    uint64
	Stamp  origin.Stamp
	Keys   []wire.KeyHash
	Tables [][2]string // schema and name of those that it truncated
}

// Lacking is what a node lacks that is gone from the own stream.
type Lacking struct {
	Node         string
	Seen, Gone   uint64 // it has seen own transactions up to the one, and those up to the other are gone
	Transactions uint64
	Since        time.Time
}

// letGone is what has gone of the own stream.
type letGone struct {
	mu      sync.Mutex
	stream  uint64 // below this frames are gone
	last    origin.Entry
	lacking map[string]Lacking
	rows    []uint64 // their seqs
}

// add takes a row of the table in, oldest first.
func (g *letGone) add(stream uint64, e origin.Entry, at time.Time, nodes []string, seen []int64) {
	g.rows = append(g.rows, e.Seq)
	g.stream, g.last = max(g.stream, stream), e
	for i, node := range nodes {
		l, ok := g.lacking[node]
		if !ok {
			l = Lacking{Node: node, Since: at}
		}
		l.Gone, l.Seen = e.Seq, max(l.Seen, uint64(seen[i]))
		g.lacking[node] = l
	}
}

// loadLetGo reads back what is gone. The journal has taken it in before.
func (a *Applier) loadLetGo(ctx context.Context) error {
	a.gone.last.Origin, a.gone.lacking = a.own, map[string]Lacking{}
	rows, err := a.catalog.conn.Query(ctx, `SELECT stream_seq, seq, stamp, at, nodes, seen FROM pgbridge.let_go ORDER BY stream_seq`)
	if err != nil {
		return fmt.Errorf("read pgbridge.let_go: %w", explain(err))
	}
	var stream, seq, stamp int64
	var at time.Time
	var nodes []string
	var seen []int64
	_, err = pgx.ForEachRow(rows, []any{&stream, &seq, &stamp, &at, &nodes, &seen}, func() error {
		a.gone.add(uint64(stream), origin.Entry{Origin: a.own, Seq: uint64(seq), Stamp: origin.Stamp(stamp)}, at, nodes, seen)
		return nil
	})
	if hasCode(err, "42P01") {
		return ErrNotSetUp
	}
	if err != nil {
		return fmt.Errorf("read pgbridge.let_go: %w", explain(err))
	}
	if a.journal != nil && !a.journal.fresh {
		a.journal.advance(a.gone.last)
	}
	return nil
}

// Gists calls f with capture's part of what is gone, oldest first.
func (a *Applier) Gists(ctx context.Context, f func(gist []byte) error) error {
	a.catalog.mu.Lock()
	defer a.catalog.mu.Unlock()
	rows, err := a.catalog.conn.Query(ctx, `SELECT gist FROM pgbridge.let_go ORDER BY stream_seq`)
	if err != nil {
		return fmt.Errorf("read pgbridge.let_go: %w", explain(err))
	}
	var gist []byte
	_, err = pgx.ForEachRow(rows, []any{&gist}, func() error { return f(gist) })
	return err
}

// Gone returns below which stream sequence own frames are gone that not every node has, and the last transaction in them; zeros if
// none are.
func (a *Applier) Gone() (stream, seq uint64) {
	a.gone.mu.Lock()
	defer a.gone.mu.Unlock()
	return a.gone.stream, a.gone.last.Seq
}

// LetGo makes durable what frames said, and all that was applied here before: then they may go. Whatever they hold must be in the
// journal (StableBut).
func (a *Applier) LetGo(ctx context.Context, x LetGo) error {
	conn, err := connect(ctx, a.opts.DSN, fmt.Sprintf("pgbridge %s let go", a.opts.Node), map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var nodes []string
	var seen []int64
	for _, node := range x.Away {
		if s := a.heardOf(node); s < x.Seq {
			nodes, seen = append(nodes, node), append(seen, int64(s))
		}
	}
	var at time.Time
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, b := range x.Buried {
			if err := a.buryOwn(ctx, tx, b); err != nil {
				return err
			}
		}
		return tx.QueryRow(ctx, `INSERT INTO pgbridge.let_go (stream_seq, seq, stamp, nodes, seen, gist) VALUES ($1, $2, $3, $4, $5, $6) RETURNING at`,
			int64(x.StreamSeq), int64(x.Seq), int64(x.Stamp), append([]string{}, nodes...), append([]int64{}, seen...), x.Gist).Scan(&at)
	})
	if err != nil {
		return fmt.Errorf("note what own frames up to transaction %d said: %w", x.Seq, explain(err))
	}
	a.gone.mu.Lock()
	defer a.gone.mu.Unlock()
	a.gone.add(x.StreamSeq, origin.Entry{Origin: a.own, Seq: x.Seq, Stamp: x.Stamp}, at, nodes, seen)
	return nil
}

// buryOwn puts what an own transaction deleted among the tombstones.
func (a *Applier) buryOwn(ctx context.Context, tx pgx.Tx, b Buried) error {
	bury := func(part int, keys []byte) error {
		_, err := tx.Exec(ctx, `INSERT INTO pgbridge.tombstone (origin, epoch, seq, part, stamp, keys) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
			a.own.Node, int64(a.own.Epoch), int64(b.Seq), part, int64(b.Stamp), keys)
		return err
	}
	part := 0
	for keys := range slices.Chunk(b.Keys, tombstoneRow) {
		if err := bury(part, packKeys(keys)); err != nil {
			return err
		}
		part++
	}
	for i, t := range b.Tables {
		if err := bury(-1-i, []byte(t[0]+"\x00"+t[1])); err != nil {
			return err
		}
	}
	return nil
}

// heardOf is up to which own transaction a node is known to have seen them, also from before this start.
func (a *Applier) heardOf(node string) uint64 {
	a.gone.mu.Lock()
	defer a.gone.mu.Unlock()
	return max(a.heard.seen(node), a.gone.lacking[node].Seen)
}

// Lacking returns the nodes that lack own transactions which are gone from the stream, by name.
func (a *Applier) Lacking() (all []Lacking) {
	a.gone.mu.Lock()
	defer a.gone.mu.Unlock()
	for _, node := range slices.Sorted(maps.Keys(a.gone.lacking)) {
		l := a.gone.lacking[node]
		if l.Seen = max(l.Seen, a.heard.seen(node)); l.Seen < l.Gone {
			l.Transactions = l.Gone - l.Seen
			all = append(all, l)
		}
	}
	return all
}

// purgeLetGo forgets what every node has seen of what is gone.
func (a *Applier) purgeLetGo(ctx context.Context) error {
	stable := a.heard.stableSeq(a.own)
	a.gone.mu.Lock()
	maps.DeleteFunc(a.gone.lacking, func(node string, l Lacking) bool { return a.heard.seen(node) >= l.Gone })
	some := len(a.gone.rows) > 0 && a.gone.rows[0] <= stable && stable < math.MaxInt64
	a.gone.mu.Unlock()
	if !some {
		return nil
	}
	if _, err := a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.tombstone WHERE origin = $1 AND epoch = $2 AND seq <= $3`,
		a.own.Node, int64(a.own.Epoch), int64(stable)); err != nil {
		return fmt.Errorf("purge own tombstones: %w", err)
	}
	if _, err := a.catalog.conn.Exec(ctx, `DELETE FROM pgbridge.let_go WHERE seq <= $1`, int64(stable)); err != nil {
		return fmt.Errorf("purge pgbridge.let_go: %w", err)
	}
	a.gone.mu.Lock()
	defer a.gone.mu.Unlock()
	a.gone.rows = slices.DeleteFunc(a.gone.rows, func(seq uint64) bool { return seq <= stable })
	return nil
}
