package apply

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/wire"
)

//go:embed schema.sql
var schemaSQL string

//go:embed ddl.sql
var ddlSQL string

// OriginName is the name of the replication origin under which node own applies the transactions of o.
func OriginName(cluster, own string, o origin.Origin) string {
	return fmt.Sprintf("pgb_%s_%s_%s_%d", cluster, own, o.Node, o.Epoch)
}

// ownOriginName is that of the bridge's own clean-up session, whose deletes are nobody's writes.
func ownOriginName(cluster, own string) string { return fmt.Sprintf("pgb_%s_%s", cluster, own) }

// keeperOriginName is that of the session in which rows come back from the quarantine with the versions that they had.
func keeperOriginName(cluster, own string) string { return ownOriginName(cluster, own) + "_kept" }

// SetupOptions say what Setup prepares.
type SetupOptions struct {
	Cluster, Node string
	Peers         []string // the other nodes' names
}

// Setup creates, where it is missing, what apply needs in the local database: the schema pgbridge, the
// node's row, replication origins and positions. It must run before the slot is created, so that rows
// that the slot will not see are known by their transaction ids. It is idempotent.
//
// The connection must not be subject to settings of a user's, such as read-only transactions; Setup lifts its time-outs.
func Setup(ctx context.Context, conn *pgx.Conn, o SetupOptions) error {
	for _, sql := range append([]string{"SET statement_timeout = 0; SET lock_timeout = 0"}, SetupSQL(o)...) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("setup: %w", explain(err))
		}
	}
	n, err := readNode(ctx, conn)
	if err != nil {
		return err
	}
	return n.is(o.Cluster, o.Node)
}

// SetupSQL returns the statements that Setup runs, each idempotent.
func SetupSQL(o SetupOptions) []string {
	sql := []string{schemaSQL, ddlSQL, fmt.Sprintf(
		"INSERT INTO pgbridge.node (cluster, node, first_xid)\n"+
			"SELECT %s, %s, pg_snapshot_xmin(pg_current_snapshot())::text::int8 WHERE NOT EXISTS (SELECT FROM pgbridge.node)",
		literal(o.Cluster), literal(o.Node))}
	create := func(name string) {
		sql = append(sql, fmt.Sprintf("SELECT pg_replication_origin_create(%s)\nWHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = %s)",
			literal(name), literal(name)))
	}
	create(ownOriginName(o.Cluster, o.Node))
	create(keeperOriginName(o.Cluster, o.Node))
	for _, p := range o.Peers {
		peer := origin.Origin{Node: p, Epoch: 1}
		create(OriginName(o.Cluster, o.Node, peer))
		sql = append(sql, fmt.Sprintf("INSERT INTO pgbridge.position (id, origin, epoch)\n"+
			"SELECT roident, %s, %d FROM pg_replication_origin WHERE roname = %s\nON CONFLICT DO NOTHING",
			literal(p), peer.Epoch, literal(OriginName(o.Cluster, o.Node, peer))))
	}
	return sql
}

// literal quotes a name for SQL; names of clusters and nodes hold nothing that needs it, but a reader
// should not have to know.
func literal(s string) string {
	out := []byte{'\''}
	for i := range len(s) {
		if s[i] == '\'' {
			out = append(out, '\'')
		}
		out = append(out, s[i])
	}
	return string(append(out, '\''))
}

func connectPlain(ctx context.Context, dsn, name string) (*pgx.Conn, error) {
	// The defaults of the database or the role are for its users: read only, a short time-out.
	settings := maps.Clone(sessionSettings)
	delete(settings, "session_replication_role") // takes a privilege that is not needed here
	return connectWith(ctx, dsn, name, settings)
}

// connectWith opens a connection with settings on top of what the connection string says.
func connectWith(ctx context.Context, dsn, name string, settings map[string]string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("postgres.dsn: %w", withoutPassword(err))
	}
	maps.Copy(cfg.RuntimeParams, settings)
	cfg.RuntimeParams["application_name"] = name
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL at %s: %w", endpoint(cfg), explain(err))
	}
	return conn, nil
}

// Node is the node's own row.
type Node struct {
	Cluster, Name string
	Epoch         uint32
	WriterEpoch   uint64
	FirstXID      uint64
	NextXID       uint64 // of transactions that begin behind this look at the database
	Published     uint64
	Secret        string // with which pgbridge.ddl signs
	Timeline      uint32 // of the server that Open has found
	// Of a node whose data were set back, see comeback.go.
	PublishedStamp origin.Stamp // of Published; 0: not known
	Restoring      bool         // it is to be given what it lacks
	RestoredLSN    uint64       // it has been: its WAL counts from here on, in a new stream; 0: that has begun
	LocalXID       uint64       // local rows of older transactions every node has seen
	RestoredSeq    uint64       // up to here its own transactions were given back
	AgainLSN       uint64       // up to here the WAL may hold rows that were written again; 0: there are none
	Beginning      *wire.Header // what NoteBeginning was told last; nil: nothing
}

// ErrNotSetUp means that the database has no schema pgbridge yet; run pgbridge setup.
var ErrNotSetUp = errors.New("the database is not set up for pgbridge; run pgbridge setup")

// HasRun reports whether a bridge has ever run for the node of this database. False if it is not set up.
func HasRun(ctx context.Context, conn *pgx.Conn) (bool, error) {
	n, err := readNode(ctx, conn)
	if errors.Is(err, ErrNotSetUp) {
		return false, nil
	}
	return err == nil && n.WriterEpoch > 0, err
}

func readNode(ctx context.Context, conn *pgx.Conn) (*Node, error) {
	n := &Node{}
	var epoch, writer, first, next, published, restored, local, again, back int64
	var beginning []byte
	// Through jsonb for what a version before this one has not set up.
	err := conn.QueryRow(ctx, `SELECT cluster, node, epoch, writer_epoch, first_xid, pg_snapshot_xmax(pg_current_snapshot())::text::int8, published, coalesce((j ->> 'published_stamp')::int8, 0),
		coalesce((j ->> 'restoring')::bool, false), coalesce((j ->> 'restored_lsn')::int8, 0), coalesce((j ->> 'local_xid')::int8, 0),
		coalesce((j ->> 'again_lsn')::int8, 0), coalesce((j ->> 'restored_seq')::int8, 0), (j ->> 'beginning')::bytea
		FROM pgbridge.node n, to_jsonb(n) j`).
		Scan(&n.Cluster, &n.Name, &epoch, &writer, &first, &next, &published, (*int64)(&n.PublishedStamp), &n.Restoring, &restored, &local, &again, &back, &beginning)
	if hasCode(err, "42P01", "3F000") || errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrNotSetUp
	}
	if err != nil {
		return nil, fmt.Errorf("read pgbridge.node: %w", explain(err))
	}
	n.Epoch, n.WriterEpoch, n.FirstXID, n.Published = uint32(epoch), uint64(writer), uint64(first), uint64(published)
	n.NextXID = uint64(next)
	n.RestoredLSN, n.LocalXID, n.AgainLSN, n.RestoredSeq = uint64(restored), uint64(local), uint64(again), uint64(back)
	if beginning != nil {
		f, err := new(wire.Decoder).Decode(beginning)
		if err != nil {
			return nil, fmt.Errorf("read pgbridge.node.beginning: %w", err)
		}
		n.Beginning = &f.Header
	}
	return n, nil
}

func (n *Node) is(cluster, node string) error {
	if n.Cluster == cluster && n.Name == node {
		return nil
	}
	return &refusal{err: fmt.Errorf("this database belongs to node %q of cluster %q, the configuration says node %q of cluster %q",
		n.Name, n.Cluster, node, cluster), mend: "point postgres.dsn at this node's own database, or give each node a name of its own"}
}

// ServerMajor is the major version of a database's server.
func ServerMajor(ctx context.Context, conn *pgx.Conn) (int, error) {
	var version int
	err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version)
	return version / 10000, named("read server version", err)
}
