package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/integration/sim"
)

// scheduleNodes is how many nodes the schedules are run on; those of more are left out.
const scheduleNodes = 3

// schedulesOnServers is how many schedules are run on real servers, and longSchedules in the soak.
const (
	schedulesOnServers = 30
	longSchedules      = 500
)

// schedulesAtOnce is how many schedules follow each other before all nodes must be equal, each with keys of its own: links
// that were cut take their time.
const schedulesAtOnce = 10

// TestSchedulesOnServers runs the logical part of simulated schedules on PostgreSQL: which node does which transactions,
// when links are cut and bridges start again. In the end all nodes hold the same rows.
func TestSchedulesOnServers(t *testing.T) {
	t.Parallel()
	p := newServerPlayer(t)
	count := schedulesOnServers
	if pgtest.Soak() {
		count = longSchedules
	}
	first := uint64(seed(t))
	t.Logf("schedules from seed %d on", first)
	next, ran := first, 0
	var batch []*sim.Schedule
	defer func() {
		if t.Failed() {
			for _, s := range batch {
				t.Log(logical(s))
			}
		}
	}()
	for ran < count {
		batch = nil
		for len(batch) < min(schedulesAtOnce, count-ran) {
			if s := sim.Generate(next); s.Nodes == scheduleNodes {
				batch = append(batch, s)
			}
			next++
		}
		p.play(batch, schedulesAtOnce*ran)
		if ran += len(batch); t.Failed() {
			return
		}
	}
	t.Logf("%d schedules from seed %d: %d transactions, %d restarts, %d cuts", ran, first, p.transactions, p.restarts, p.cuts)
}

func newServerPlayer(t *testing.T) *serverPlayer {
	t.Helper()
	var schema, config strings.Builder
	for _, table := range sim.AllTables() {
		schema.WriteString(table.SQL())
		if table.Merged {
			fmt.Fprintf(&config, "%s; ", table.Config())
		}
	}
	c := cluster.New(t, cluster.Options{Nodes: scheduleNodes, Schema: schema.String(), Config: map[string]string{
		"conflict.priority": strings.Join(sim.Priority(), ","), "conflict.tables": strings.TrimSuffix(config.String(), "; ")}})
	p := &serverPlayer{t: t, c: c, counts: map[scheduleKey]*counted{}}
	for _, n := range c.Nodes {
		p.conns = append(p.conns, pgtest.Connect(t, n.DSN))
	}
	return p
}

// logical is the part of a schedule that servers follow, as text.
func logical(s *sim.Schedule) string {
	part := *s
	part.Events = slices.DeleteFunc(slices.Clone(s.Events), func(e sim.Event) bool { return !e.Logical() })
	return part.String()
}

// serverPlayer plays schedules on a cluster.
type serverPlayer struct {
	t     *testing.T
	c     *cluster.Cluster
	conns []*pgx.Conn
	// What must be in the end.
	counts map[scheduleKey]*counted

	s      *sim.Schedule // that is being played
	offset int           // of its keys

	transactions, restarts, cuts int
}

type scheduleKey struct {
	table string
	key   int
}

// counted is what is known of a key without knowing who wins.
type counted struct {
	began   []conflict.Cell
	sum     int64 // of the counter's increments
	unclear bool  // the counter may have gone with its row
	writers map[int]bool
	last    []conflict.Cell // as the last transaction left the row
}

// keysOfSchedule is how far the keys of two schedules are apart.
const keysOfSchedule = 10

// play plays schedules one after the other and waits for the end of all.
func (p *serverPlayer) play(batch []*sim.Schedule, offset int) {
	each := func(f func()) {
		for i, s := range batch {
			p.s, p.offset = s, keysOfSchedule*(offset+i)
			f()
		}
	}
	each(p.fill)
	p.c.WaitConverged()
	each(func() {
		if !p.s.InTurn {
			p.events()
		}
	})
	for _, n := range p.c.Nodes {
		for _, l := range n.Links {
			l.Heal()
		}
	}
	p.c.WaitConverged()
	each(func() {
		if p.s.InTurn {
			p.inTurn()
		}
	})
	p.check()
}

func (p *serverPlayer) events() {
	for i := range p.s.Events {
		e := &p.s.Events[i]
		link := p.c.Nodes[e.Node].Links[sim.NodeName(e.Peer)]
		switch {
		case e.Kind == sim.Begin:
			p.transaction(e)
		case e.Kind == sim.Cut:
			link.Cut()
			p.cuts++
		case e.Kind == sim.Heal:
			link.Heal()
		case e.Kind == sim.Restart && i%16 == 0: // they take long
			p.c.Nodes[e.Node].Stop()
			p.c.Nodes[e.Node].Start()
			p.restarts++
		}
	}
}

// transactionsInTurn bounds how long a schedule in turn takes.
const transactionsInTurn = 6

// inTurn lets each transaction be everywhere before the next one: there is nothing to conflict with (invariant 5).
func (p *serverPlayer) inTurn() {
	conflicts := p.conflicts()
	left := transactionsInTurn
	for i := range p.s.Events {
		if e := &p.s.Events[i]; e.Kind == sim.Begin && left > 0 {
			p.transaction(e)
			p.c.WaitConverged()
			left--
		}
	}
	if now := p.conflicts(); now != conflicts {
		p.t.Errorf("%s conflicts are recorded, %s before: there was never more than one writer", now, conflicts)
	}
}

func (p *serverPlayer) conflicts() string {
	var all []string
	for _, n := range p.c.Nodes {
		all = append(all, n.Value(`SELECT count(*) FROM pgbridge.conflict`))
	}
	return strings.Join(all, "+")
}

func (p *serverPlayer) table(merged bool) *sim.Table {
	tables := p.s.Tables()
	if merged {
		return tables[1]
	}
	return tables[0]
}

func (p *serverPlayer) at(k scheduleKey) *counted {
	if p.counts[k] == nil {
		p.counts[k] = &counted{unclear: true, writers: map[int]bool{}}
	}
	return p.counts[k]
}

func (p *serverPlayer) key(merged bool, key int) scheduleKey {
	return scheduleKey{p.table(merged).Name, p.offset + min(key, p.s.Keys)}
}

// fill inserts the rows that are there from the beginning.
func (p *serverPlayer) fill() {
	if !p.s.Filled {
		return
	}
	p.do(0, func(tx *serverTx) error {
		for key := 1; key <= p.s.Keys; key++ {
			for _, merged := range []bool{false, true} {
				row := p.table(merged).Fresh(p.offset+key, uint64(key))
				if err := tx.insert(p.table(merged), row); err != nil {
					return err
				}
				p.counts[p.key(merged, key)] = &counted{began: row, last: row, writers: map[int]bool{}}
			}
		}
		return nil
	})
}

// transaction is a user's.
func (p *serverPlayer) transaction(e *sim.Event) {
	var done []func()
	p.do(e.Node, func(tx *serverTx) error {
		done = nil
		for i := range e.Ops {
			note, err := tx.op(p, &e.Ops[i], e.Node)
			if err != nil {
				return err
			}
			done = append(done, note)
		}
		return nil
	})
	p.transactions++
	for _, note := range done {
		note()
	}
}

// do runs f in a transaction, again as long as the server picks it as a deadlock's victim.
func (p *serverPlayer) do(node int, f func(*serverTx) error) {
	p.t.Helper()
	ctx := p.t.Context()
	for {
		err := pgx.BeginFunc(ctx, p.conns[node], func(tx pgx.Tx) error { return f(&serverTx{ctx, tx.Conn().PgConn()}) })
		var pg *pgconn.PgError
		if errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "23505") {
			continue
		}
		if err != nil {
			p.t.Fatalf("transaction on node %s: %v", sim.NodeName(node), err)
		}
		return
	}
}

// serverTx runs statements with values in binary, as the simulation has them.
type serverTx struct {
	ctx  context.Context
	conn *pgconn.PgConn
}

func (tx *serverTx) exec(sql string, cells ...conflict.Cell) ([][][]byte, error) {
	values, formats := make([][]byte, len(cells)), make([]int16, len(cells))
	for i, c := range cells {
		if formats[i] = 1; !c.Null {
			values[i] = append([]byte{}, c.Data...)
		}
	}
	r := tx.conn.ExecParams(tx.ctx, sql, values, nil, formats, []int16{1}).Read()
	return r.Rows, r.Err
}

func (tx *serverTx) row(t *sim.Table, key int) ([]conflict.Cell, error) {
	rows, err := tx.exec("SELECT * FROM "+t.Name+" WHERE id = $1 FOR UPDATE", sim.Key(key))
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	row := make([]conflict.Cell, len(rows[0]))
	for i, v := range rows[0] {
		row[i] = conflict.Cell{Null: v == nil, Data: v}
	}
	return row, nil
}

func (tx *serverTx) insert(t *sim.Table, row []conflict.Cell) error {
	var places []string
	for i := range row {
		places = append(places, "$"+strconv.Itoa(i+1))
	}
	_, err := tx.exec("INSERT INTO "+t.Name+" VALUES ("+strings.Join(places, ", ")+")", row...)
	return err
}

// update changes the row of a key; the columns that stay as they are are not named.
func (tx *serverTx) update(t *sim.Table, key int, before, after []conflict.Cell) error {
	cells := []conflict.Cell{sim.Key(key)}
	var sets []string
	for i, c := range after {
		if c.Null != before[i].Null || string(c.Data) != string(before[i].Data) {
			cells = append(cells, c)
			sets = append(sets, fmt.Sprintf("%s = $%d", t.Columns[i].Name, len(cells)))
		}
	}
	if len(sets) == 0 {
		sets = []string{"id = id"}
	}
	_, err := tx.exec("UPDATE "+t.Name+" SET "+strings.Join(sets, ", ")+" WHERE id = $1", cells...)
	return err
}

// op is one statement; the function that it returns notes what it means for the end, once it is committed.
func (tx *serverTx) op(p *serverPlayer, o *sim.Op, node int) (note func(), err error) {
	t, k := p.table(o.Merged), p.key(o.Merged, o.Key)
	row, err := tx.row(t, k.key)
	if err != nil {
		return nil, err
	}
	leaves := func(k scheduleKey, after []conflict.Cell, sum int64, unclear bool) {
		n := p.at(k)
		n.last, n.sum, n.unclear, n.writers[node] = after, n.sum+sum, n.unclear || unclear, true
	}
	switch {
	case o.Kind == sim.Truncate:
		_, err := tx.exec("TRUNCATE " + t.Name)
		return func() {
			for k := range p.counts {
				if k.table == t.Name {
					leaves(k, nil, 0, true)
				}
			}
		}, err
	case o.Kind == sim.Remove:
		_, err := tx.exec("DELETE FROM "+t.Name+" WHERE id = $1", sim.Key(k.key))
		return func() { leaves(k, nil, 0, true) }, err
	case o.Kind == sim.Move:
		to := p.key(o.Merged, o.To)
		other, err := tx.row(t, to.key)
		if err != nil || row == nil || other != nil {
			return func() {}, err
		}
		after := t.Edit(row, o.Arg, false)
		after[0] = sim.Key(to.key)
		return func() {
			leaves(k, nil, 0, true)
			leaves(to, after, 0, true)
		}, tx.update(t, k.key, row, after)
	case row == nil:
		after := t.Fresh(k.key, o.Arg)
		return func() { leaves(k, after, 0, true) }, tx.insert(t, after)
	}
	after := t.Edit(row, o.Arg, o.Kind == sim.Patch)
	sum := int64(0)
	if o.Merged {
		sum = t.Added(row, after)
	}
	return func() { leaves(k, after, sum, false) }, tx.update(t, k.key, row, after)
}

// check compares the end with what was written: counters, and rows that only one node has written.
func (p *serverPlayer) check() {
	p.t.Helper()
	tables := map[string]*sim.Table{}
	for _, t := range sim.AllTables() {
		tables[t.Name] = t
	}
	p.do(0, func(tx *serverTx) error {
		for k, n := range p.counts {
			t := tables[k.table]
			row, err := tx.row(t, k.key)
			if err != nil {
				return err
			}
			if t.Merged && !n.unclear && t.Columns[1].Rule == conflict.Delta && (row == nil || t.Added(n.began, row) != n.sum) {
				p.t.Errorf("counter %d of %s: %v from %v, its increments sum up to %d", k.key, t.Name, row, n.began, n.sum)
			}
			if len(n.writers) == 1 && fmt.Sprint(row) != fmt.Sprint(n.last) {
				p.t.Errorf("key %d of %s: %v, its only writer left %v", k.key, t.Name, row, n.last)
			}
		}
		return nil
	})
}
