package apply

import (
	"bytes"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

// TestRowsAreWrittenAgain: what another node asks for is written again with its large values, unless it is not this node's
// to write.
func TestRowsAreWrittenAgain(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		p := newPair(t, s, `CREATE DOMAIN label AS text CHECK (VALUE <> '');
			CREATE TABLE "Odd t" ("K" numeric, d label, n int, big text, doc jsonb, gone bytea, small varchar(9), g text GENERATED ALWAYS AS (n || 'g') STORED,
				PRIMARY KEY ("K", d));
			ALTER TABLE "Odd t" ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL`)
		p.to.Exec(t, `INSERT INTO "Odd t" VALUES (1.0, 'it''s', 1, repeat('b', 9000), json_build_object('x', repeat('j', 9000)), NULL, 'small')`)
		d := p.a.resends
		awaitTrue(t, func() bool { return p.a.wal.Load() != nil })
		if err := d.open(t.Context()); err != nil {
			t.Fatal(err)
		}
		ask := func(name, key string, want bool) {
			t.Helper()
			waits, err := d.resend(t.Context(), &wire.Ask{ID: 1, Schema: "public", Table: name, Key: []byte(key)}, map[tableName]*table{})
			if err != nil || (waits == "") != want {
				t.Errorf("%s %s: waits %q, %v; is to be written again: %v", name, key, waits, err, want)
			}
		}
		const key = `{"K":1.00,"d":"it's"}`
		slot := "pgb_" + p.to.Name + "_told"
		p.to.Exec(t, `CREATE PUBLICATION p FOR TABLE "Odd t"`)
		p.to.Exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
		before := p.to.Query(t, `SELECT t::text FROM "Odd t" t`)
		ask("Odd t", key, true)
		if after := p.to.Query(t, `SELECT t::text FROM "Odd t" t`); strings.Join(before, "") != strings.Join(after, "") {
			t.Errorf("it became %.100q, was %.100q", after, before)
		}
		p.to.Exec(t, `SELECT pg_logical_emit_message(true, 'any', '')`) // flushes
		var change []byte
		if err := p.to.Connect(t).QueryRow(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1',
			'publication_names', 'p') WHERE get_byte(data, 0) = ascii('U')`, slot).Scan(&change); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(change, bytes.Repeat([]byte("b"), 9000)) || !bytes.Contains(change, bytes.Repeat([]byte("j"), 9000)) {
			t.Errorf("the WAL has %d bytes of it", len(change))
		}
		ask("Odd t", `{"K":2,"d":"it's"}`, true) // not there: its delete is in the stream
		ask("gone", key, true)

		// What is owed here itself is another's to write, until a user has written it.
		p.to.Exec(t, `INSERT INTO pgbridge.owed (origin, epoch, seq, stamp, before_seq, before_stamp, schema, name, key, hash, writer)
			SELECT 'a', 1, 9, 9, 8, 8, 'public', 'Odd t', '{"K":1,"d":"it''s"}', '', xmin::text FROM "Odd t"`)
		ask("Odd t", key, false)
		p.to.Exec(t, `UPDATE "Odd t" SET n = 2`)
		ask("Odd t", key, true)
		p.to.Exec(t, `DELETE FROM "Odd t"`)
		ask("Odd t", key, true) // owed or not, what took it is on its way to all
		p.to.Exec(t, `DELETE FROM pgbridge.owed`)
		p.to.Exec(t, `INSERT INTO pgbridge.quarantine (hi, lo, schema, name, origin, epoch, stamp, xid, constraint_name, blocker_hi, blocker_lo, columns, image)
			VALUES (1, 1, 'public', 'Odd t', 'a', 1, 1, 1, 'x', 2, 2, '{n,K,d}', '{1,1.000,it''s}')`)
		ask("Odd t", key, false)
		p.to.Exec(t, `DELETE FROM pgbridge.quarantine`)
	})
}

// TestNewerDebtReplacesOlder: of one row one thing is owed by an origin, and what is told of it ends in front of the first.
func TestNewerDebtReplacesOlder(t *testing.T) {
	o := origin.Origin{Node: "a", Epoch: 1}
	entry := func(seq uint64) origin.Entry { return origin.Entry{Origin: o, Seq: seq, Stamp: origin.Stamp(seq)} }
	p := newProgress()
	owed := newOwed(p)
	told := func(want uint64) {
		t.Helper()
		p.mu.Lock()
		defer p.mu.Unlock()
		if got := p.now().done.Seq(o); got != want {
			t.Errorf("told up to %d, want %d", got, want)
		}
	}
	k := wire.KeyHash{Hi: 1, Lo: 1}
	p.advance(entry(4))
	first := &owedRow{id: 1, of: entry(5), before: entry(4), hash: k}
	owed.add(first)
	p.advance(entry(5))
	p.advance(entry(6))
	told(4)
	c := &carefulRun{worker: &worker{origin: o, progress: p, owed: owed}}
	second := c.owedRow(k, &debt{t: &txn{origin: o, Begin: wire.Begin{Seq: 7, Stamp: 7}}, m: &mapping{local: &table{}}})
	if len(c.paid) != 1 || c.paid[0] != first || second.before != entry(4) {
		t.Errorf("the second is %+v and replaces %v", second, c.paid)
	}
	owed.add(second)
	owed.drop(c.paid...)
	p.advance(entry(7))
	told(4)
	if !owed.any(k) || owed.any(wire.KeyHash{Hi: 2}) || len(owed.of(k)) != 1 {
		t.Errorf("owed are %v", owed.rows)
	}
	owed.answer(second.id, origin.Vector{entry(8)})
	if done, waits := owed.settled(origin.Origin{Node: "b", Epoch: 1}); len(done) != 0 || !waits {
		t.Errorf("settled before its answer was reached: %v", done)
	}
	p.advance(entry(8))
	done, _ := owed.settled(origin.Origin{Node: "b", Epoch: 1})
	if len(done) != 1 {
		t.Fatalf("settled are %v", done)
	}
	owed.drop(done...)
	told(8)
}
