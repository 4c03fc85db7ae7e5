package apply

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// orphanSchema has foreign keys of all kinds, and is filled without that they are checked.
const orphanSchema = `
CREATE TABLE parent (id int PRIMARY KEY, code text COLLATE "C" UNIQUE);
CREATE TABLE child (id int PRIMARY KEY, parent bigint REFERENCES parent, v text);
CREATE TABLE late (id int PRIMARY KEY, code text COLLATE "POSIX");
ALTER TABLE late ADD CONSTRAINT late_code FOREIGN KEY (code) REFERENCES parent (code) NOT VALID;
CREATE TABLE pair (a int, b text, PRIMARY KEY (a, b));
CREATE TABLE simple (id int PRIMARY KEY, x int, y text, FOREIGN KEY (x, y) REFERENCES pair);
CREATE TABLE whole (id int PRIMARY KEY, x int, y text, FOREIGN KEY (x, y) REFERENCES pair MATCH FULL);
CREATE TABLE log (id int, day int, parent int REFERENCES parent, PRIMARY KEY (id, day)) PARTITION BY LIST (day);
CREATE TABLE log_1 PARTITION OF log FOR VALUES IN (1);
CREATE TABLE log_2 PARTITION OF log FOR VALUES IN (2);
ALTER TABLE log_2 ADD CONSTRAINT log_2_own FOREIGN KEY (id) REFERENCES parent;
CREATE TABLE strict (parent int PRIMARY KEY REFERENCES parent);
CREATE TABLE under (id int PRIMARY KEY, strict int REFERENCES strict);
CREATE TABLE "od.d" ("The ""id" int PRIMARY KEY, up int REFERENCES "od.d");
CREATE TABLE hidden (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE PUBLICATION pub FOR TABLE parent, child, late, pair, simple, whole, log, strict, under, "od.d" WITH (publish_via_partition_root);
SET session_replication_role = replica;
INSERT INTO parent VALUES (1, 'one');
INSERT INTO pair VALUES (1, 'x');
INSERT INTO child VALUES (1, 1, ''), (2, 2, 'kept'), (3, NULL, ''), (4, 4, '');
INSERT INTO late VALUES (1, 'one'), (2, 'two');
INSERT INTO simple VALUES (1, 1, 'x'), (2, 1, NULL), (3, NULL, NULL), (4, 1, 'y');
INSERT INTO whole VALUES (1, 1, 'x'), (2, 1, NULL), (3, NULL, NULL), (4, 1, 'y');
INSERT INTO log VALUES (1, 1, 1), (2, 1, 2), (1, 2, 1), (3, 2, NULL);
INSERT INTO strict VALUES (1), (7), (8);
INSERT INTO under VALUES (1, 7);
INSERT INTO "od.d" VALUES (1, 1), (2, 9);
INSERT INTO hidden VALUES (1, 9);
RESET session_replication_role;
`

func openOrphans(t *testing.T, db *pgtest.Database) *History {
	t.Helper()
	h, err := OpenHistory(t.Context(), HistoryOptions{DSN: db.DSN, Cluster: db.Name, Node: "b", Publication: "pub"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close(context.Background()) })
	return h
}

// orphans lists what is found, one line for each foreign key.
func orphans(t *testing.T, h *History, o OrphanOptions) string {
	t.Helper()
	found, err := h.Orphans(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range found {
		line := fmt.Sprint(f.Table, " ", f.Constraint, " ", f.Orphans, " ", f.Keys)
		if f.Mended > 0 {
			line += fmt.Sprint(" mended ", f.Mended)
		}
		if f.Refused != "" {
			line += " refused"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestOrphansOfEachKindOfForeignKey(t *testing.T) {
	t.Parallel()
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		db := setUp(t, s, orphanSchema)
		h := openOrphans(t, db)
		const all = `public.child child_parent_fkey 2 [id=2 id=4]
public.late late_code 1 [id=2]
public.log log_parent_fkey 1 [day=1,id=2]
public.log_2 log_2_own 1 [day=2,id=3]
public.od.d od.d_up_fkey 1 [The "id=2]
public.simple simple_x_y_fkey 1 [id=4]
public.strict strict_parent_fkey 2 [parent=7 parent=8]
public.whole whole_x_y_fkey 2 [id=2 id=4]`
		if got := orphans(t, h, OrphanOptions{}); got != all {
			t.Errorf("got\n%s, want\n%s", got, all)
		}
		if got := orphans(t, h, OrphanOptions{Table: "public.c*", Limit: 1}); got != "public.child child_parent_fkey 2 [id=2]" {
			t.Errorf("one key: %s", got)
		}
		if found, err := h.Orphans(t.Context(), OrphanOptions{Fix: OrphanNull, DryRun: true}); err != nil || len(found) != 8 || found[0].Mended != 0 || found[0].Statement == "" {
			t.Errorf("dry run: %+v, %v", found, err)
		}
		const nulls = `public.child child_parent_fkey 2 [id=2 id=4] mended 2
public.late late_code 1 [id=2] mended 1
public.log log_parent_fkey 1 [day=1,id=2] mended 1
public.log_2 log_2_own 1 [day=2,id=3] refused
public.od.d od.d_up_fkey 1 [The "id=2] mended 1
public.simple simple_x_y_fkey 1 [id=4] mended 1
public.strict strict_parent_fkey 2 [parent=7 parent=8] refused
public.whole whole_x_y_fkey 2 [id=2 id=4] mended 2`
		if got := orphans(t, h, OrphanOptions{Fix: OrphanNull}); got != nulls {
			t.Errorf("got\n%s, want\n%s", got, nulls)
		}
		if got := strings.Join(db.Query(t, `SELECT id, x, y FROM whole ORDER BY 1`), " "); got != "1|1|x 2|∅|∅ 3|∅|∅ 4|∅|∅" {
			t.Errorf("MATCH FULL: %s", got)
		}
		// The row that another one refers to is kept, and with it the whole transaction.
		if got := orphans(t, h, OrphanOptions{Fix: OrphanDelete}); got != "public.log_2 log_2_own 1 [day=2,id=3] mended 1\npublic.strict strict_parent_fkey 2 [parent=7 parent=8] refused" {
			t.Errorf("delete: %s", got)
		}
		db.Exec(t, `DELETE FROM under`)
		orphans(t, h, OrphanOptions{Fix: OrphanDelete})
		if got := orphans(t, h, OrphanOptions{}); got != "" {
			t.Errorf("left: %s", got)
		}
	})
}

// TestMendedOrphansComeBack: what was mended stands in the history, and an undo brings it back once its parent is there.
func TestMendedOrphansComeBack(t *testing.T) {
	db := setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), orphanSchema)
	h := openOrphans(t, db)
	orphans(t, h, OrphanOptions{Table: "*.child", Fix: OrphanDelete})
	orphans(t, h, OrphanOptions{Table: "*.late", Fix: OrphanNull})
	page, err := h.List(t.Context(), ConflictFilter{Kind: OrphanKind, Key: map[string]string{"id": "2"}})
	if err != nil || len(page.Conflicts) != 2 || page.Conflicts[0].Close {
		t.Fatalf("history: %+v, %v", page, err)
	}
	for _, c := range page.Conflicts {
		if _, err := h.Undo(t.Context(), c.ID, UndoOptions{}); !hasCode(err, "23503") {
			t.Errorf("undo without a parent: %v", err)
		}
	}
	db.Exec(t, `INSERT INTO parent VALUES (2, 'two')`)
	for _, c := range page.Conflicts {
		if _, err := h.Undo(t.Context(), c.ID, UndoOptions{}); err != nil {
			t.Error(strconv.FormatInt(c.ID, 10), err)
		}
	}
	if got := strings.Join(db.Query(t, `SELECT id, parent::text, v FROM child UNION ALL SELECT id, 'late', code FROM late ORDER BY 1, 2`), " "); got != "1|1| 1|late|one 2|2|kept 2|late|two 3|∅|" {
		t.Errorf("after the undo: %s", got)
	}
}

func TestOrphanOptions(t *testing.T) {
	h := openOrphans(t, setUp(t, pgtest.SharedServer(t, pgtest.Newest(t)), `CREATE PUBLICATION pub`))
	for _, o := range []OrphanOptions{{Table: "items"}, {Fix: "keep"}, {Limit: -1}} {
		_, err := h.Orphans(t.Context(), o)
		if coded, ok := err.(interface{ ExitCode() int }); !ok || coded.ExitCode() != 2 {
			t.Errorf("%+v: %v; want wrong usage", o, err)
		}
	}
	if got := orphans(t, h, OrphanOptions{Fix: OrphanDelete}); got != "" {
		t.Errorf("without tables: %s", got)
	}
}
