package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// columns that sequences fill: serial, identity, one sequence for a table of small numbers, and a partitioned table.
const sequenceSchema = `
	CREATE TABLE serial_ (id serial PRIMARY KEY, node text);
	CREATE TABLE identity_ (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node text);
	CREATE SEQUENCE shared; CREATE TABLE by_default (id int PRIMARY KEY DEFAULT nextval('shared'), node text);
	CREATE TABLE parted (id bigserial PRIMARY KEY, node text) PARTITION BY HASH (id);
	CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
	CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 2, REMAINDER 1);
	CREATE TABLE blocks (id bigint PRIMARY KEY, node text); CREATE SEQUENCE hilo INCREMENT BY 50; ALTER TABLE blocks ALTER id SET DEFAULT nextval('hilo');
	CREATE TABLE uuids (id uuid PRIMARY KEY, node text)`

var filledTables = []string{"serial_", "identity_", "by_default", "parted"}

// applySequences plans a node's sequences and changes them.
func applySequences(t *testing.T, n *cluster.Node) *bridge.SequencePlan {
	t.Helper()
	p, err := bridge.ApplySequences(t.Context(), n.Load(), bridge.SequenceOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPlannedSequences: three nodes that begin with rows and with sequences that collide are planned one after the other while
// they insert, and then insert for a while: no value is given twice, no insert fails, there is no conflict. An overlap that is
// planted is found by doctor on both nodes that it concerns, and apply mends it.
func TestPlannedSequences(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 3, Schema: sequenceSchema})
	a, b := c.Node("a"), c.Node("b")
	a.Exec(`INSERT INTO serial_ (node) SELECT 'a' FROM generate_series(1, 100); INSERT INTO by_default VALUES (5000, 'by hand')`)
	c.WaitConverged()
	if codes := findings(t, b); !slices.Contains(codes, "sequence-collides") || !slices.Contains(codes, "sequence-in-use") {
		t.Errorf("before: %q", codes)
	}
	for _, n := range c.Nodes {
		p := applySequences(t, n)
		for _, s := range p.Steps {
			switch {
			case strings.Contains(s.Table, "blocks"):
				if !strings.Contains(s.Refused, "its increment is 50") {
					t.Errorf("%+v", s)
				}
			case s.Refused != "" || s.Planned || s.Number != int64(n.Name[0]-'a') || s.Next < 5000 && strings.Contains(s.Table, "by_default"):
				t.Errorf("node %s: %+v", n.Name, s)
			}
		}
		n.Exec(`INSERT INTO serial_ (node) VALUES ($1)`, n.Name)
	}
	for _, n := range c.Nodes { // each knows now that all are planned
		for _, s := range applySequences(t, n).Steps {
			if !s.Planned && s.Refused == "" {
				t.Errorf("node %s is planned again: %+v", n.Name, s)
			}
		}
	}
	inserted := insertAtOnce(t, c, loadTime()/4)
	c.WaitConverged()
	for _, table := range filledTables {
		if got, want := a.Value(`SELECT count(*) FROM `+table+` WHERE node LIKE 'at once%'`), fmt.Sprint(inserted[table]); got != want {
			t.Errorf("table %s has %s rows of %s", table, got, want)
		}
	}
	for _, n := range c.Nodes {
		if got := n.Value(`SELECT count(*) FROM pgbridge.conflict`); got != "0" {
			t.Errorf("node %s has %s conflicts: %v", n.Name, got, n.Query(`SELECT relation, kind, local_row, remote_row FROM pgbridge.conflict LIMIT 5`))
		}
		if codes := findings(t, n); slices.ContainsFunc(codes, func(c string) bool { return strings.HasPrefix(c, "sequence-") && c != "sequence-collides" }) || count(codes, "sequence-collides") != 2 {
			t.Errorf("node %s: %q; only the blocks are left, with both others", n.Name, codes)
		}
	}
	t.Logf("%v rows were inserted on three nodes at once", inserted)
	a.Exec(`ALTER SEQUENCE identity__id_seq RESTART WITH ` + b.Value(`SELECT last_value + 160 FROM identity__id_seq`))
	for _, n := range []*cluster.Node{a, b} {
		if codes := findings(t, n); count(codes, "sequence-collides") != 3 {
			t.Errorf("node %s does not find the planted overlap: %q", n.Name, codes)
		}
	}
	applySequences(t, b) // the second by name of two with one number gives way
	if codes := findings(t, a); count(codes, "sequence-collides") != 2 {
		t.Errorf("after it was mended: %q", codes)
	}
}

func count(list []string, want string) (n int) {
	for _, s := range list {
		if s == want {
			n++
		}
	}
	return n
}

// insertAtOnce inserts into every table on every node for a time, and returns how many rows by table.
func insertAtOnce(t *testing.T, c *cluster.Cluster, d time.Duration) map[string]int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	inserted, mu := map[string]int{}, sync.Mutex{}
	var wg sync.WaitGroup
	for _, n := range c.Nodes {
		for _, table := range filledTables {
			wg.Go(func() {
				conn, err := pgx.Connect(t.Context(), n.DSN)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close(context.Background())
				rows := 0
				for ctx.Err() == nil {
					if _, err := conn.Exec(t.Context(), `INSERT INTO `+table+` (node) SELECT 'at once on ' || $1 FROM generate_series(1, 5)`, n.Name); err != nil {
						t.Errorf("node %s: %v", n.Name, err)
						break
					}
					rows += 5
				}
				mu.Lock()
				defer mu.Unlock()
				inserted[table] += rows
			})
		}
	}
	wg.Wait()
	return inserted
}

// TestSequenceBadInput: what cannot be planned is refused in one line, and nothing is changed.
func TestSequenceBadInput(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: sequenceSchema})
	a := c.Node("a")
	state := `SELECT string_agg(seqrelid::regclass || ' ' || seqincrement, ', ' ORDER BY 1) FROM pg_sequence WHERE seqrelid >= 16384 AND seqrelid::regclass::text NOT LIKE 'pgbridge.%'`
	before := a.Value(state)
	for name, x := range map[string]struct {
		o     bridge.SequenceOptions
		words []string
	}{
		"pattern":       {bridge.SequenceOptions{Table: "serial_"}, []string{"serial_", "schema.table"}},
		"unknown table": {bridge.SequenceOptions{Table: "public.nowhere"}, []string{`no replicated table fits "public.nowhere"`}},
		"modulus":       {bridge.SequenceOptions{Modulus: 1}, []string{"a modulus of 1 cannot be; use 2"}},
		"identifiers":   {bridge.SequenceOptions{IDs: "time"}, []string{"have pgbridge sequences plan print the statements"}},
	} {
		_, err := bridge.ApplySequences(t.Context(), a.Load(), x.o)
		wantRefusal(t, err, x.words...)
		if e, ok := err.(interface{ ExitCode() int }); !ok || e.ExitCode() != 2 {
			t.Errorf("%s: %v does not ask for exit code 2", name, err)
		}
	}
	if _, err := bridge.PlanSequences(t.Context(), a.Load(), bridge.SequenceOptions{IDs: "serial"}); err == nil || !strings.Contains(err.Error(), "use time or uuid") {
		t.Error(err)
	}
	// A sequence that somebody holds: none is changed, also not those in front of it.
	conn := pgtest.Connect(t, a.DSN)
	if _, err := conn.Exec(t.Context(), `BEGIN; ALTER SEQUENCE shared CACHE 5`); err != nil {
		t.Fatal(err)
	}
	_, err := bridge.ApplySequences(t.Context(), a.Load(), bridge.SequenceOptions{})
	wantRefusal(t, err, "change sequence", "nothing was changed", "try again")
	if _, err := conn.Exec(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	c.Node("b").Stop()
	_, err = bridge.ApplySequences(t.Context(), a.Load(), bridge.SequenceOptions{})
	wantRefusal(t, err, "node b could not be asked", "let its bridge run", "nothing was changed")
	if got := a.Value(state); got != before {
		t.Errorf("sequences were changed:\n%s\n%s", before, got)
	}
}

// TestIdentifiersWithoutSequences: the printed statements run as they are, on the oldest server and on the newest, and the
// identifiers of two nodes that they give differ, rise with time, and name their kind.
func TestIdentifiersWithoutSequences(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Majors: []int{pgtest.Versions(t)[0], pgtest.Newest(t)}, Schema: `
		CREATE TABLE serial_ (id bigserial PRIMARY KEY, node text); CREATE TABLE identity_ (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, node text);
		CREATE TABLE uuids (id uuid PRIMARY KEY, node text);`})
	for _, n := range c.Nodes {
		for _, kind := range []string{"time", "uuid"} {
			p, err := bridge.PlanSequences(t.Context(), n.Load(), bridge.SequenceOptions{IDs: kind})
			if err != nil {
				t.Fatal(err)
			}
			for _, sql := range p.SQL {
				n.Exec(sql)
			}
			if again, err := bridge.PlanSequences(t.Context(), n.Load(), bridge.SequenceOptions{IDs: kind}); err != nil || kind == "time" && again.SQL[0] != p.SQL[0] {
				t.Errorf("node %s gets another number: %q, %v", n.Name, again.SQL, err)
			}
		}
		for _, table := range []string{"serial_", "identity_", "uuids"} {
			n.Exec(`INSERT INTO ` + table + ` (node) SELECT '` + n.Name + `' FROM generate_series(1, 1000)`)
		}
	}
	c.WaitConverged()
	for _, n := range c.Nodes {
		for _, table := range []string{"serial_", "identity_", "uuids"} {
			if got := n.Value(`SELECT count(*) FROM ` + table); got != "2000" {
				t.Errorf("node %s has %s rows in %s", n.Name, got, table)
			}
		}
		if got := n.Value(`SELECT bool_and(id > 0 AND ((id >> 16) & 63) = ascii(node) - 97 AND abs(extract(epoch FROM clock_timestamp()) * 1000 - 1735689600000 - (id >> 22)) < 60000) FROM serial_`); got != "true" && got != "t" {
			t.Errorf("node %s: identifiers do not hold time and number: %v", n.Name, n.Query(`SELECT id, node FROM serial_ LIMIT 3`))
		}
		if got := n.Value(`SELECT bool_and(substr(id::text, 15, 1) = '7' AND abs(extract(epoch FROM clock_timestamp()) * 1000 - ('x' || lpad(substr(replace(id::text, '-', ''), 1, 12), 16, '0'))::bit(64)::bigint) < 60000) FROM uuids`); got != "true" && got != "t" {
			t.Errorf("node %s: these are not of version 7: %v", n.Name, n.Query(`SELECT id FROM uuids LIMIT 3`))
		}
	}
	c.Node("b").Exec(`CREATE OR REPLACE FUNCTION pgbridge.id_number() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 0'`)
	if codes := findings(t, c.Node("a")); !slices.Contains(codes, "id-number") {
		t.Errorf("two nodes with one number are not found: %q", codes)
	}
}
