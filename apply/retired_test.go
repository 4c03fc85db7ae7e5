package apply

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// countPrepared makes inserts into the table other say how many statements the session has prepared.
const countPrepared = `CREATE TABLE prepared (n int); CREATE FUNCTION count_prepared() RETURNS trigger LANGUAGE plpgsql AS
	$$BEGIN INSERT INTO public.prepared SELECT count(*) FROM pg_prepared_statements WHERE name ~ '^[sk][0-9]+$'; RETURN NULL; END$$;
	CREATE TRIGGER count_prepared AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION count_prepared();
	ALTER TABLE other ENABLE ALWAYS TRIGGER count_prepared`

// prepared counts the statements on the connection by which p applies.
func prepared(t *testing.T, p *pair) int {
	t.Helper()
	p.do(`INSERT INTO other VALUES (1)`)
	n, err := strconv.Atoi(p.to.Value(t, `SELECT n FROM prepared`))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStatementsAreClosedWithTheirMapping: tables that change, and transactions that are tried again and again,
// leave nothing on the server.
func TestStatementsAreClosedWithTheirMapping(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE other (id int PRIMARY KEY)`)
	p.to.Exec(t, countPrepared)
	p.do(`INSERT INTO t VALUES (1, 'x'), (2, 'x'), (3, 'x'), (4, 'x'), (5, 'x')`)
	const changes = 30
	for i := range changes {
		add := fmt.Sprintf(`ALTER TABLE t ADD c%d int`, i)
		p.from.Exec(t, add)
		p.to.Exec(t, add)
		for range combineFrom { // then the updates go out as one statement
			p.do(`BEGIN; UPDATE t SET v = v || '.' WHERE id = 1; UPDATE t SET v = v || '.' WHERE id = 2; COMMIT`)
		}
		p.do(`UPDATE t SET v = 'all'`)
		p.to.Exec(t, `UPDATE t SET v = 'local' WHERE id = 5`)
		p.do(`UPDATE t SET v = 'y' WHERE id = 5`) // by the careful path
	}
	if n := prepared(t, p); n > 20 {
		t.Errorf("%d statements are prepared after %d changes of a table", n, changes)
	}
	if st := p.status(); st.Careful < changes {
		t.Errorf("status %+v", st)
	}
	p.same(`SELECT id, v FROM t ORDER BY id`)
}

// TestStatementsOfTriesAreClosed: a transaction that the server refuses, for what is not its data, is tried until it does not.
func TestStatementsOfTriesAreClosed(t *testing.T) {
	t.Parallel()
	p := newPair(t, pgtest.SharedServer(t, pgtest.Newest(t)), tableT+`; CREATE TABLE other (id int PRIMARY KEY)`)
	p.do(`INSERT INTO t VALUES (1, 'x')`)
	p.to.Exec(t, countPrepared)
	p.to.Exec(t, `CREATE SEQUENCE tries; CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$BEGIN PERFORM nextval('public.tries'); RAISE 'no' USING ERRCODE = 'insufficient_privilege'; END$$;
		CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE t ENABLE ALWAYS TRIGGER refuse`)
	p.from.Exec(t, `UPDATE t SET v = 'y'`)
	p.ship(nil, false)
	awaitTrue(t, func() bool {
		n, err := strconv.Atoi(p.to.Value(t, `SELECT last_value FROM tries`))
		return err == nil && n >= 6 && strings.Contains(p.status().Waiting, "refused by the server")
	})
	p.to.Exec(t, `DROP TRIGGER refuse ON t`)
	p.await()
	if n := prepared(t, p); n > 8 {
		t.Errorf("%d statements are prepared", n)
	}
	p.same(`SELECT * FROM t ORDER BY id`)
}
