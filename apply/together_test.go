package apply

import (
	"fmt"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// combinations returns how many statements for whole transactions the worker has prepared. Nothing may be
// under way.
func (p *pair) combinations() int {
	n := 0
	for _, c := range p.a.worker(nodeA).combined {
		if c.s != nil && c.s.ready {
			n++
		}
	}
	return n
}

const togetherSchema = `CREATE TABLE account (id int PRIMARY KEY, n int, filler text); CREATE TABLE log (id bigint PRIMARY KEY, account int, at timestamptz);
	CREATE TABLE branch (id int PRIMARY KEY, n int); CREATE TABLE two (id int PRIMARY KEY, u int UNIQUE)`

// transfer is what a small transaction of an application does again and again.
func transfer(i int) string {
	return fmt.Sprintf(`BEGIN; UPDATE account SET n = n + %[1]d WHERE id = %[2]d; UPDATE branch SET n = n + %[1]d WHERE id = 1;
		INSERT INTO log VALUES (%[1]d, %[2]d, '2026-01-01'); COMMIT`, i, 1+i%5)
}

func newTransfers(t *testing.T) *pair {
	t.Helper()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), togetherSchema)
	p.do(`INSERT INTO account SELECT i, 0, NULL FROM generate_series(1, 5) i; INSERT INTO branch VALUES (1, 0)`)
	for i := range 6 {
		p.do(transfer(100 + i))
	}
	if n := p.combinations(); n != 1 {
		t.Fatalf("%d combinations; want one", n)
	}
	return p
}

func (p *pair) sameTransfers() {
	p.t.Helper()
	for _, table := range []string{"account", "branch", "log"} {
		p.same("SELECT * FROM " + table + " ORDER BY id")
	}
}

func TestTransactionsThatRepeatGoOutTogether(t *testing.T) {
	t.Parallel()
	p := newTransfers(t)
	// The same tables, other columns, another order, a row twice: none may be taken for the one above.
	for i := range 5 {
		p.do(fmt.Sprintf(`BEGIN; INSERT INTO log VALUES (%d, NULL, NULL); UPDATE account SET filler = NULL, n = n + 1 WHERE id = 2; COMMIT`, 200+i))
		p.do(fmt.Sprintf(`BEGIN; UPDATE account SET n = n + 1 WHERE id = 1; UPDATE account SET n = n * 2 WHERE id = 1; INSERT INTO log VALUES (%d, 1, NULL); COMMIT`, 300+i))
		p.do(fmt.Sprintf(`BEGIN; INSERT INTO log VALUES (%d, 1, NULL); UPDATE log SET account = 9 WHERE id = %[1]d; COMMIT`, 400+i))
		p.do(fmt.Sprintf(`BEGIN; UPDATE account SET n = -n WHERE id = 1; DELETE FROM log WHERE id = %d; COMMIT`, 200+i))
		p.do(fmt.Sprintf(`BEGIN; UPDATE account SET id = id + 100 WHERE id = %d; UPDATE branch SET n = %[1]d; COMMIT`, 1+i))
		p.do(fmt.Sprintf(`BEGIN; UPDATE account SET id = id - 100 WHERE id = %d; UPDATE branch SET n = %[1]d; COMMIT`, 101+i))
	}
	p.sameTransfers()
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestUniqueValuesAreSwappedInOrder: rows of one table that has another unique constraint go one by one.
func TestUniqueValuesAreSwappedInOrder(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), togetherSchema)
	p.do(`INSERT INTO two VALUES (1, 1), (2, 2)`)
	for range 5 {
		p.do(`BEGIN; UPDATE two SET u = NULL WHERE id = 1; UPDATE two SET u = 1 WHERE id = 2; COMMIT`)
		p.do(`BEGIN; UPDATE two SET u = 2 WHERE id = 2; UPDATE two SET u = 1 WHERE id = 1; COMMIT`)
	}
	p.same(`SELECT * FROM two ORDER BY id`)
	if st := p.status(); st.Careful != 0 {
		t.Errorf("status %+v", st)
	}
}

// TestGuardsHoldTogether: each guard of a combined statement, and the assertion that each row is there, sends
// the whole transaction the careful path.
func TestGuardsHoldTogether(t *testing.T) {
	t.Parallel()
	for name, local := range map[string]string{
		"the first row was written here":  `UPDATE account SET n = -1, filler = 'local' WHERE id = 2`,
		"the second row was written here": `UPDATE branch SET n = -1`,
		"the first row is not there":      `DELETE FROM account WHERE id = 2`,
		"the new row is there":            `INSERT INTO log VALUES (116, -1, NULL)`,
	} {
		t.Run(name, func(t *testing.T) {
			p := newTransfers(t)
			before := p.status().Careful
			p.from.Exec(t, transfer(116))
			p.to.Exec(t, local) // later: it wins, or, where it has deleted, the update brings the row back
			p.ship(nil, false)
			p.await()
			if n := p.status().Careful - before; n != 1 {
				t.Errorf("%d transactions went the careful path", n)
			}
			if n := p.to.Value(t, `SELECT count(*) FROM log WHERE id = 116`); n != "1" {
				t.Errorf("%s rows of the transaction's insert", n)
			}
			p.do(transfer(117))
			if st := p.status(); st.Seq != p.seq {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestPositionIsAssertedTogether: a combined statement moves the position from seq - 1 alone (PROOF.md R1, R2).
func TestPositionIsAssertedTogether(t *testing.T) {
	t.Parallel()
	p := newTransfers(t)
	p.to.Exec(t, `UPDATE pgbridge.position SET seq = seq - 1 WHERE origin = 'a'`)
	p.from.Exec(t, transfer(110))
	p.ship(nil, false)
	awaitTrue(t, func() bool { return p.status().Waiting != "" })
	if n := p.to.Value(t, `SELECT count(*) FROM log WHERE id = 110`); n != "0" {
		t.Errorf("%s rows of a transaction whose predecessor is missing", n)
	}
	p.to.Exec(t, `UPDATE pgbridge.position SET seq = seq + 1 WHERE origin = 'a'`)
	p.await()
	p.sameTransfers()
}
