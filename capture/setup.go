package capture

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/wire"
)

// SetupOptions say what Setup prepares.
type SetupOptions struct {
	DSN           string
	Primary       *Primary // of DSN, to ask over a connection that it may have; nil: over a new one
	Cluster, Node string
	Slot          string   // "pgb_<cluster>_<node>" if empty
	Publication   string   // the same
	Tables        []string // patterns as in "public.*", "!public.audit"; all tables if empty
	Merged        []string // patterns of tables whose rows are merged, for which others need the old values
	// Rows are of tables of which only some nodes have some rows.
	Rows map[TableName]*wire.Places
	// Columns are those, of some tables, of which only some nodes have the values.
	Columns map[TableName][]wire.ColumnNodes
	// HasRun says that the node has captured before: a slot or a publication that is missing now was dropped,
	// and a new one would leave out what was committed since. Setup then refuses to create it.
	HasRun bool
	// Failover says that a standby is to take over, with the slot: one that is there and is none for that becomes one.
	Failover bool
	// Reader says that users do not write to the tables here: a trigger refuses it.
	Reader bool
	// MayWrite says which tables they write where they do not write all; nil: they do.
	MayWrite func(schema, table string) bool
	// Waits is told, now and then, for whom the creation of the slot waits; nil if nobody wants to know.
	Waits func(text string)
	// Running says that capture goes on after an interruption: a table that cannot be captured, or is not yet,
	// keeps Check from nothing then. TableWatch tells of it.
	Running bool
}

// ask asks the server of the options.
func (o SetupOptions) ask(ctx context.Context, f func(conn *pgx.Conn) error) error {
	if o.Primary != nil {
		return o.Primary.Ask(ctx, f)
	}
	p := NewPrimary(o.DSN)
	defer p.Close()
	return p.Ask(ctx, f)
}

func (o SetupOptions) withDefaults() SetupOptions {
	if o.Slot == "" {
		o.Slot = originPrefix(o.Cluster, o.Node)
	}
	if o.Publication == "" {
		o.Publication = originPrefix(o.Cluster, o.Node)
	}
	return o
}

// Setup creates, where it is missing, what capture needs in the local database: the publication of the
// chosen tables, then the slot. It is idempotent, and corrects a publication whose tables or settings
// differ. It needs CREATE on the database, ownership of the tables, and REPLICATION.
func Setup(ctx context.Context, o SetupOptions) error {
	return o.ask(ctx, func(conn *pgx.Conn) error { return setup(ctx, conn, o) })
}

func setup(ctx context.Context, conn *pgx.Conn, o SetupOptions) error {
	statements, err := setupSQL(ctx, conn, o.withDefaults())
	if err != nil {
		return err
	}
	// A slot cannot be created in a transaction that has written, so each statement is its own, and each
	// may wait for running transactions.
	if _, err := conn.Exec(ctx, "SET statement_timeout = 0"); err != nil {
		return classify(err, "setup")
	}
	for _, sql := range statements {
		if strings.HasPrefix(sql, slotCreation) {
			err = createSlot(ctx, conn, o, sql)
		} else {
			_, err = conn.Exec(ctx, sql)
		}
		if err != nil {
			return classify(err, "setup: "+sql)
		}
	}
	return allowFailover(ctx, conn, o.withDefaults())
}

// allowFailover makes the slot one that standbys have, too, which takes a replication connection.
func allowFailover(ctx context.Context, conn *pgx.Conn, o SetupOptions) error {
	s, err := readSlot(ctx, conn, o.Slot)
	if err != nil || !o.Failover || s.failover {
		return err
	}
	walsender, err := connectReplication(ctx, o.DSN)
	if err != nil {
		return err
	}
	defer walsender.Close(ctx)
	_, err = walsender.Exec(ctx, failoverSQL(o.Slot)).ReadAll()
	return classify(err, "setup: "+failoverSQL(o.Slot))
}

func failoverSQL(slot string) string {
	return fmt.Sprintf("ALTER_REPLICATION_SLOT %s (FAILOVER true)", ident(slot))
}

// SetupSQL returns what Setup would run now, for a DBA to run by hand; nothing if all is there.
func SetupSQL(ctx context.Context, o SetupOptions) (sql []string, err error) {
	o = o.withDefaults()
	err = o.ask(ctx, func(conn *pgx.Conn) error {
		if sql, err = setupSQL(ctx, conn, o); err != nil || !o.Failover {
			return err
		}
		s, err := readSlot(ctx, conn, o.Slot)
		if err == nil && s.exists && !s.failover {
			sql = append(sql, "-- over a replication connection, as of psql 'replication=database': "+failoverSQL(o.Slot))
		}
		return err
	})
	return sql, err
}

func setupSQL(ctx context.Context, conn *pgx.Conn, o SetupOptions) ([]string, error) {
	srv, err := readServer(ctx, conn)
	if err != nil {
		return nil, err
	}
	if err := srv.check(); err != nil {
		return nil, err
	}
	if err := srv.checkFailover(o); err != nil {
		return nil, err
	}
	chosen, err := listTables(ctx, conn, o.Tables)
	if err != nil {
		return nil, err
	}
	pub, err := readPublication(ctx, conn, o.Publication, srv.version)
	if err != nil {
		return nil, err
	}
	if !pub.exists && o.HasRun {
		return nil, &CheckError{Findings: []Finding{publicationGone(pub.name)}}
	}
	var names []TableName
	for _, c := range chosen {
		// What is published without a key cannot be updated any more, by anybody. What is published
		// already stays: Check has more to say to that than a change that no error explains.
		if c.usable() || pub.has(c.TableName) {
			names = append(names, c.TableName)
		}
	}
	statements := publicationSQL(pub, names)
	refuse, err := refuseSQL(ctx, conn, o, chosen)
	if err != nil {
		return nil, err
	}
	statements = append(statements, refuse...)
	s, err := readSlot(ctx, conn, o.Slot)
	if err != nil {
		return nil, err
	}
	if !s.exists && o.HasRun {
		return nil, finding(CodeSlotMissing, fmt.Sprintf("slot %q", s.name),
			"is not there, though this node has captured with it before: what was committed since it was dropped, or since a standby without it was promoted, is in no slot",
			srv.withoutSlot())
	}
	if !s.exists {
		return append(statements, slotCreationSQL(o.Slot, srv.version)), nil
	}
	return statements, s.check()
}

// publication is what the catalog says of a publication.
type publication struct {
	name    string
	exists  bool
	all     bool // FOR ALL TABLES, or of whole schemas
	ops     bool // publishes all operations
	viaRoot bool
	tables  []publishedTable
}

type publishedTable struct {
	TableName
	partial bool // a column list or a row filter
}

func (p *publication) has(n TableName) bool {
	return slices.ContainsFunc(p.tables, func(t publishedTable) bool { return t.TableName == n })
}

func (p *publication) partial() bool {
	return slices.ContainsFunc(p.tables, func(t publishedTable) bool { return t.partial })
}

// readPublication goes through jsonb for columns that 14 does not have.
func readPublication(ctx context.Context, conn *pgx.Conn, name string, version int) (*publication, error) {
	p := &publication{name: name}
	schemas := "false"
	if version >= 150000 {
		schemas = "EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = p.oid)"
	}
	err := conn.QueryRow(ctx, `
		SELECT puballtables OR `+schemas+`, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot
		FROM pg_publication p WHERE pubname = $1`, name).Scan(&p.all, &p.ops, &p.viaRoot)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, nil
	}
	if err != nil {
		return nil, classify(err, "read publication "+ident(name))
	}
	p.exists = true
	rows, err := conn.Query(ctx, `
		SELECT n.nspname::text, c.relname::text,
		       coalesce(to_jsonb(r) ->> 'prattrs', to_jsonb(r) ->> 'prqual') IS NOT NULL
		FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
		     JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE p.pubname = $1 ORDER BY n.nspname, c.relname`, name)
	if err != nil {
		return nil, classify(err, "read publication "+ident(name))
	}
	var t publishedTable
	if _, err = pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &t.partial}, func() error {
		p.tables = append(p.tables, t)
		return nil
	}); err != nil {
		return nil, classify(err, "read publication "+ident(name))
	}
	return p, nil
}

// publicationGone is what to say of one that capture has used. PostgreSQL decodes each change by the publication
// as it was then, so that a new one brings nothing of the time between: before 18 it stumbles there, later it
// leaves that out without a word.
func publicationGone(name string) Finding {
	return Finding{CodePublicationMissing, "publication " + ident(name),
		"was dropped after this node had captured with it: what was committed since is not replicated, also not with a new one",
		fmt.Sprintf("if nothing was committed, run CREATE PUBLICATION %s and pgbridge setup; else let the node join anew", ident(name))}
}

const publishSettings = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"

// publicationSQL returns what makes the publication one of exactly these tables.
func publicationSQL(p *publication, want []TableName) []string {
	name := ident(p.name)
	create := "CREATE PUBLICATION " + name
	if len(want) > 0 {
		create += " FOR TABLE " + tableList(want)
	}
	create += " WITH (" + publishSettings + ")"
	switch {
	case !p.exists:
		return []string{create}
	case p.all:
		// It cannot be altered into a list of tables. In one transaction: what commits while there is
		// no publication could never be decoded.
		return []string{"DROP PUBLICATION " + name + "; " + create}
	}
	var sql []string
	if !p.ops || !p.viaRoot {
		sql = append(sql, fmt.Sprintf("ALTER PUBLICATION %s SET (%s)", name, publishSettings))
	}
	same := len(want) == len(p.tables) && !p.partial()
	for _, n := range want {
		same = same && p.has(n)
	}
	switch {
	case same:
	case len(want) == 0:
		sql = append(sql, fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s", name, tableList(p.names())))
	default:
		sql = append(sql, fmt.Sprintf("ALTER PUBLICATION %s SET TABLE %s", name, tableList(want)))
	}
	return sql
}

func tableList(names []TableName) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = n.String()
	}
	return strings.Join(quoted, ", ")
}

func (p *publication) names() []TableName {
	names := make([]TableName, len(p.tables))
	for i, t := range p.tables {
		names[i] = t.TableName
	}
	return names
}

const slotCreation = "SELECT pg_create_logical_replication_slot("

// slotCreationSQL: from 17 on the slot is one that a standby can take over.
func slotCreationSQL(slot string, version int) string {
	if version >= 170000 {
		return fmt.Sprintf(slotCreation+"%s, 'pgoutput', false, false, true)", literal(slot))
	}
	return fmt.Sprintf(slotCreation+"%s, 'pgoutput', false, false)", literal(slot))
}
