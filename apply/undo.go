package apply

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgbridge/pgbridge/conflict"
)

// An undo writes the loser's version as an ordinary transaction of this node. Its session has no replication origin, so that
// capture takes it for a user's write: it is later than all that is here, and wins wherever the other nodes have no concurrent
// write. The image goes through the server's own json_populate_record, so that a value becomes what its type made of it.

// UndoOptions say how a loser is brought back.
type UndoOptions struct {
	// Force writes whatever is there now, and however often it was undone.
	Force bool
	// DryRun looks at everything and writes nothing.
	DryRun bool
	// By is who asks for it; the role is noted too.
	By string
}

// Undone is what an undo has done, or would do.
type Undone struct {
	ID         int64       `json:"id"`
	Table      string      `json:"table"`
	Key        ConflictKey `json:"key"`
	Deleted    bool        `json:"deleted"`    // the loser was a delete, and the row is gone again
	Statements []string    `json:"statements"` // in one transaction
}

// Undo brings the loser of one conflict back, and notes that in the history, in one transaction. Without o.Force it refuses
// when the row is not the version any more that won, or when the conflict was undone already. ErrNoConflict if there is none
// of that id.
func (h *History) Undo(ctx context.Context, id int64, o UndoOptions) (*Undone, error) {
	if !h.undoable {
		return nil, &refusal{errors.New("the table pgbridge.conflict is of an earlier version, without the columns that an undo writes"), "run pgbridge setup"}
	}
	var done *Undone
	var err error
	for range undoTries {
		done, err = h.undo(ctx, id, o)
		if !hasCode(err, "23505", "40001", "40P01") {
			break // else the row may have come at the same moment, and the next look sees it
		}
	}
	return done, err
}

// undoTries bounds how often an undo meets a write at the same moment, before it is left to a person.
const undoTries = 3

// undo is one try.
func (h *History) undo(ctx context.Context, id int64, o UndoOptions) (done *Undone, err error) {
	err = pgx.BeginFunc(ctx, h.conn, func(tx pgx.Tx) error {
		u, err := h.plan(ctx, tx, id, o)
		if err != nil {
			return err
		}
		done = &Undone{ID: id, Table: u.Table, Key: u.Key, Deleted: !u.loser.there(), Statements: []string{u.statement, u.note(h.role, o.By)}}
		if o.DryRun {
			return nil
		}
		return u.write(ctx, done.Statements)
	})
	if err != nil {
		return nil, err
	}
	return done, nil
}

// undo is one undo on its way.
type undo struct {
	*ConflictDetail
	h             *History
	tx            pgx.Tx
	t             *table
	loser, winner *image
	loserCol      string // of pgbridge.conflict
	winnerCol     string
	now           *image // the row of the key that is there now
	// As the table's types have them now: what the images say may have been cut or rounded since.
	loserNow, winnerNow *image
	statement           string
}

// plan looks at everything that an undo depends on, and holds it until the transaction ends.
func (h *History) plan(ctx context.Context, tx pgx.Tx, id int64, o UndoOptions) (*undo, error) {
	lock := ""
	if !o.DryRun { // a dry run needs no privilege to write
		lock = " FOR UPDATE OF t"
		if _, err := tx.Exec(ctx, `SELECT FROM pgbridge.conflict WHERE id = $1 FOR UPDATE`, id); err != nil {
			return nil, fmt.Errorf("lock conflict: %w", h.explain(err))
		}
	}
	d, err := h.Show(ctx, id)
	if err != nil {
		return nil, err
	}
	u := &undo{ConflictDetail: d, h: h, tx: tx}
	if err := u.open(ctx, o); err != nil {
		return nil, err
	}
	if err := u.look(ctx, lock); err != nil {
		return nil, err
	}
	if !o.Force {
		if err := u.unchanged(); err != nil {
			return nil, err
		}
	}
	u.statement, err = u.sql(ctx, o)
	return u, err
}

// open takes the conflict apart and finds its table; the error says what of it can no more be had.
func (u *undo) open(ctx context.Context, o UndoOptions) error {
	if u.UndoneAt != nil && !o.Force {
		return fmt.Errorf("it was undone at %s by %s; --force writes it again", u.UndoneAt.Format("2006-01-02 15:04:05Z"), u.UndoneBy)
	}
	if u.Kind == string(conflict.Unique) {
		return fmt.Errorf("the row is not lost, but kept until no later row has its value of %s: delete that row or give it another value, "+
			"or insert this one again with another one", u.Constraint)
	}
	if u.NotRecorded != "" {
		return fmt.Errorf("its row was not recorded, since the server refused: %s; write it by hand", u.NotRecorded)
	}
	var local, remote *image
	for _, side := range []struct {
		to   **image
		text []byte
	}{{&local, u.LocalRow}, {&remote, u.RemoteRow}} {
		text := string(side.text)
		p := &text
		if text == "null" {
			p = nil
		}
		var err error
		if *side.to, err = parseImage(p); err != nil {
			return err
		}
	}
	u.loser, u.loserCol, u.winner, u.winnerCol = remote, "remote_row", local, "local_row"
	if u.remoteWins() {
		u.loser, u.loserCol, u.winner, u.winnerCol = u.winner, u.winnerCol, u.loser, u.loserCol
	}
	if !u.loser.there() && !u.winner.there() {
		return errors.New("both sides deleted the row, so that there is nothing to bring back")
	}
	var err error
	if u.t, err = u.h.load(ctx, u.Table); err != nil {
		return err
	}
	return u.fits()
}

// fits checks that the table still has the image's columns.
func (u *undo) fits() error {
	key, _ := u.keyImage()
	for _, k := range u.t.key {
		if key.values[u.t.cols[k].name] == nil {
			return fmt.Errorf("table %s has column %s in its key now, which the recorded row lacks; write it by hand, from pgbridge conflicts show %d",
				u.t.quoted, u.t.cols[k].quoted, u.ID)
		}
	}
	var gone []string
	for _, name := range u.loser.names {
		if !slices.ContainsFunc(u.t.cols, func(c column) bool { return c.name == name }) {
			gone = append(gone, pgx.Identifier{name}.Sanitize())
		}
	}
	if len(gone) > 0 {
		return fmt.Errorf("table %s has no column %s any more, which the row had; add it, or write the row by hand, from pgbridge conflicts show %d",
			u.t.quoted, strings.Join(gone, ", "), u.ID)
	}
	return nil
}

// keyImage is the image that holds the row's key, with its column of pgbridge.conflict.
func (u *undo) keyImage() (*image, string) {
	if u.loser.there() {
		return u.loser, u.loserCol
	}
	return u.winner, u.winnerCol
}

// from is the part of a FROM clause, with its condition, that makes an image a row p of the table.
func (u *undo) from(col string) (from, where string) {
	return fmt.Sprintf("pgbridge.conflict c, pg_catalog.json_populate_record(NULL::%s, c.%s) p", u.t.quoted, col), fmt.Sprintf("c.id = %d", u.ID)
}

// look reads the row that is there now, and both images through the table's types.
func (u *undo) look(ctx context.Context, lock string) error {
	var err error
	for _, i := range []struct {
		to   **image
		of   *image
		name string
	}{{&u.loserNow, u.loser, u.loserCol}, {&u.winnerNow, u.winner, u.winnerCol}} {
		*i.to = i.of
		if !i.of.there() {
			continue
		}
		from, where := u.from(i.name)
		if *i.to, err = u.row(ctx, "turn what was recorded into", fmt.Sprintf("SELECT row_to_json(p.*)::text FROM %s WHERE %s", from, where)); err != nil {
			return err
		}
	}
	_, col := u.keyImage()
	from, where := u.from(col)
	u.now, err = u.row(ctx, "look at", fmt.Sprintf("SELECT row_to_json(t.*)::text FROM %s t, %s WHERE %s AND %s%s", u.t.rows, from, where, u.t.sameKey("t", "p"), lock))
	return err
}

// row runs a query for one row as JSON, for what it is to do with it; an image without a row if there is none.
func (u *undo) row(ctx context.Context, what, sql string) (*image, error) {
	var text *string
	if err := u.tx.QueryRow(ctx, sql).Scan(&text); err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, u.explain(fmt.Errorf("%s a row of %s: %w", what, u.t.quoted, err))
	}
	return parseImage(text)
}

// unchanged checks that what is there now is the version that won, and that the loser's is still one of this table.
func (u *undo) unchanged() error {
	const force = "; --force writes it all the same"
	if cols := u.differing(u.loser, u.loserNow); len(cols) > 0 {
		return fmt.Errorf("in table %s the recorded row would not be what it was: its types have changed, of %s%s", u.t.quoted, strings.Join(cols, ", "), force)
	}
	if cols := u.ambiguous(); len(cols) > 0 {
		return fmt.Errorf("in table %s JSON cannot tell whether the arrays in %s were elements or dimensions%s", u.t.quoted, strings.Join(cols, ", "), force)
	}
	changed := u.differing(u.winnerNow, u.now)
	switch {
	case u.winner.there() == u.now.there() && len(changed) == 0:
		return nil
	case u.loser.there() == u.now.there() && len(u.differing(u.loserNow, u.now)) == 0:
		return fmt.Errorf("row %s of %s is what it was before it lost already; it may have been undone on another node%s", u.Key, u.t.quoted, force)
	case !u.now.there():
		return fmt.Errorf("row %s of %s has been deleted since%s", u.Key, u.t.quoted, force)
	case !u.winner.there():
		return fmt.Errorf("row %s of %s had been deleted, and has been inserted since%s", u.Key, u.t.quoted, force)
	}
	return fmt.Errorf("row %s of %s is not the version that won any more: %s changed since%s", u.Key, u.t.quoted, strings.Join(changed, ", "), force)
}

// differing lists the columns of a that have another value in b. Generated columns follow from the others, and a column
// that the table has lost is not compared.
func (u *undo) differing(a, b *image) []string {
	var cols []string
	for i := range u.t.cols {
		c := &u.t.cols[i]
		if v := a.values[c.name]; v != nil && b.there() && !c.generated && !u.lacks(a, c.name) && !bytes.Equal(v, b.values[c.name]) {
			cols = append(cols, c.quoted)
		}
	}
	return cols
}

// ambiguous lists the loser's json[] and jsonb[] columns that hold arrays in an array: the server takes those for dimensions.
func (u *undo) ambiguous() []string {
	const oidJSONB = 3802
	var cols []string
	for i := range u.t.cols {
		c := &u.t.cols[i]
		var elements []json.RawMessage
		if e := c.typ.root().elem; e == nil || e.root().oid != oidJSON && e.root().oid != oidJSONB || json.Unmarshal(u.loser.values[c.name], &elements) != nil {
			continue
		}
		if slices.ContainsFunc(elements, func(v json.RawMessage) bool { return bytes.HasPrefix(v, []byte("[")) }) {
			cols = append(cols, c.quoted)
		}
	}
	return cols
}

// lacks reports whether a column stands in an image only since the table's row type has filled it up.
func (u *undo) lacks(i *image, name string) bool {
	return i == u.winnerNow && u.winner.values[name] == nil || i == u.loserNow && u.loser.values[name] == nil
}

// sql is the statement that brings the loser back.
func (u *undo) sql(ctx context.Context, o UndoOptions) (string, error) {
	_, col := u.keyImage()
	from, where := u.from(col)
	switch {
	case !u.loser.there() && !u.now.there():
		return "", fmt.Errorf("row %s of %s is not there, so that there is nothing to delete", u.Key, u.t.quoted)
	case !u.loser.there():
		return fmt.Sprintf("DELETE FROM %s t USING %s\nWHERE %s AND %s", u.t.rows, from, where, u.t.sameKey("t", "p")), nil
	case !u.now.there():
		return u.insertSQL(from, where, o)
	}
	var set []string
	for i := range u.t.cols {
		c := &u.t.cols[i]
		if u.loser.values[c.name] == nil || c.generated {
			continue
		}
		if !c.always {
			set = append(set, fmt.Sprintf("%s = p.%s", c.quoted, c.quoted))
		} else if !bytes.Equal(u.loserNow.values[c.name], u.now.values[c.name]) {
			return u.replaceSQL(ctx, from, where, c)
		}
	}
	if len(set) == 0 {
		return "", fmt.Errorf("row %s of %s has no column that can be written", u.Key, u.t.quoted)
	}
	return fmt.Sprintf("UPDATE %s t SET %s\nFROM %s\nWHERE %s AND %s", u.t.rows, strings.Join(set, ", "), from, where, u.t.sameKey("t", "p")), nil
}

// insertSQL inserts the row anew, which must be known whole.
func (u *undo) insertSQL(from, where string, o UndoOptions) (string, error) {
	var cols, values, lacking []string
	for i := range u.t.cols {
		c := &u.t.cols[i]
		switch {
		case c.generated:
		case u.loser.values[c.name] == nil:
			lacking = append(lacking, c.quoted)
		default:
			cols, values = append(cols, c.quoted), append(values, "p."+c.quoted)
		}
	}
	if len(lacking) > 0 && !o.Force {
		return "", fmt.Errorf("row %s of %s is not there any more, and what was recorded lacks %s: a large value that did not change, or a column that is new; "+
			"--force inserts it with the default there", u.Key, u.t.quoted, strings.Join(lacking, ", "))
	}
	return fmt.Sprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE\nSELECT %s FROM %s\nWHERE %s",
		u.t.quoted, strings.Join(cols, ", "), strings.Join(values, ", "), from, where), nil
}

// replaceSQL deletes the row and inserts it again, the only way to change an identity column that is GENERATED ALWAYS. What
// the image lacks comes from the row that is there.
func (u *undo) replaceSQL(ctx context.Context, from, where string, always *column) (string, error) {
	var acts bool
	err := u.tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = $1 AND confdeltype IN ('c', 'n', 'd'))`, u.t.oid).Scan(&acts)
	if err != nil {
		return "", fmt.Errorf("read foreign keys that refer to %s: %w", u.t.quoted, err)
	}
	if acts {
		return "", fmt.Errorf("column %s of %s is GENERATED ALWAYS and had another value; to write it the row would have to be deleted and inserted again, "+
			"and the foreign keys that refer to the table would delete or change rows of others; write it by hand", always.quoted, u.t.quoted)
	}
	var cols, old, values []string
	for i := range u.t.cols {
		c := &u.t.cols[i]
		if c.generated {
			continue
		}
		cols, old = append(cols, c.quoted), append(old, "t."+c.quoted)
		if u.loser.values[c.name] != nil {
			values = append(values, "p."+c.quoted)
		} else {
			values = append(values, "d."+c.quoted)
		}
	}
	return fmt.Sprintf("WITH d AS (DELETE FROM %s t USING %s WHERE %s AND %s RETURNING %s)\nINSERT INTO %s (%s) OVERRIDING SYSTEM VALUE\nSELECT %s FROM d, %s\nWHERE %s",
		u.t.rows, from, where, u.t.sameKey("t", "p"), strings.Join(old, ", "), u.t.quoted, strings.Join(cols, ", "), strings.Join(values, ", "), from, where), nil
}

// note is the statement that says in the history who has undone the conflict.
func (u *undo) note(role, by string) string {
	if by != "" {
		role = by + " as " + role
	}
	return fmt.Sprintf("UPDATE pgbridge.conflict SET undone_at = pg_catalog.now(), undone_by = %s WHERE id = %d", literal(role), u.ID)
}

// asUser makes the transaction one of an ordinary session of the role.
func (h *History) asUser(ctx context.Context, tx pgx.Tx) error {
	var mode string
	if err := tx.QueryRow(ctx, `SELECT current_setting('session_replication_role'), set_config('search_path', $1, true)`, h.searchPath).Scan(&mode, nil); err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	if mode == "origin" {
		return nil
	}
	if _, err := tx.Exec(ctx, `SET LOCAL session_replication_role = origin`); err != nil {
		return &refusal{err, "run ALTER ROLE " + h.role + " RESET session_replication_role: it is a write that fires triggers as any other"}
	}
	return nil
}

// write runs the statements as a user's session would: triggers and foreign keys see them, under the role's own search_path.
func (u *undo) write(ctx context.Context, statements []string) error {
	if err := u.h.asUser(ctx, u.tx); err != nil {
		return err
	}
	for i, sql := range statements {
		tag, err := u.tx.Exec(ctx, sql)
		if i > 0 {
			err = u.h.explain(err)
		}
		if err != nil {
			return u.explain(err)
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("%d rows were written instead of one, and nothing is changed: a trigger, a rule or row security of %s is in the way", tag.RowsAffected(), u.t.quoted)
		}
	}
	return nil
}

// explain adds the mend to what the server refuses.
func (u *undo) explain(err error) error {
	var pg *pgconn.PgError
	var told *refusal
	if !errors.As(err, &pg) || errors.As(err, &told) {
		return err
	}
	switch pg.Code {
	case "42501":
		return &refusal{err, fmt.Sprintf("run GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO %[2]s, and where the table has row security "+
			"let the role have BYPASSRLS; or name a role in postgres.dsn that may write it", pgx.Identifier{u.t.schema}.Sanitize(), u.h.role, u.t.quoted)}
	case "23505":
		return fmt.Errorf("%w (%s); another row has what must be unique: change that one first", err, pg.Detail)
	}
	return err
}
