package catalog

import (
	"fmt"
	"slices"
)

// IDKind is a kind of identifiers that need no sequence of several nodes.
type IDKind string

// The kinds.
const (
	// TimeIDs are 63 bits: 41 of milliseconds, 6 of the node's number, 16 of a count. They fit a bigint column.
	TimeIDs IDKind = "time"
	// UUIDs are of version 7, which begin with the time. They fit a uuid column.
	UUIDs IDKind = "uuid"
)

// timeIDSQL makes the functions of TimeIDs. The epoch is 2025-01-01 UTC, from which 41 bits last until 2094.
const timeIDSQL = `CREATE OR REPLACE FUNCTION pgbridge.id_number() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT %d';
CREATE SEQUENCE IF NOT EXISTS pgbridge.id_count MINVALUE 0 MAXVALUE 65535 START WITH 0 CYCLE CACHE 1;
CREATE OR REPLACE FUNCTION pgbridge.time_id() RETURNS bigint LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT ((floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint - 1735689600000) << 22)
           | (pgbridge.id_number()::bigint << 16) | nextval('pgbridge.id_count')
$$`

// uuidSQL makes a function that servers have from 18 on. The time takes the first 48 bits; 52 and 53 turn version 4 into 7.
const uuidSQL = `CREATE OR REPLACE FUNCTION pgbridge.uuidv7() RETURNS uuid LANGUAGE sql VOLATILE SET search_path = pg_catalog AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$`

// IDs returns the statements by which the key columns of this node's tables get such identifiers as their default, for a person to
// run.
func IDs(kind IDKind, here *Summary, others []*Summary, nodes []string) []string {
	var sql []string
	call := "pgbridge.time_id()"
	switch {
	case kind == TimeIDs:
		claimed := map[string]int64{}
		for _, s := range append(slices.Clone(others), here) {
			if s.IDNumber != nil {
				claimed[s.Node] = int64(*s.IDNumber)
			}
		}
		sql = append(sql, fmt.Sprintf(timeIDSQL, Numbers(nodes, claimed)[here.Node]))
	case here.Version < 180000:
		sql, call = append(sql, uuidSQL), "pgbridge.uuidv7()"
	default:
		call = "uuidv7()"
	}
	for i := range here.Tables {
		t := &here.Tables[i]
		for _, name := range t.Key {
			c := t.column(name)
			q := here.sequence(t.Name, name)
			switch {
			case kind == UUIDs && c.Type == "uuid", kind == TimeIDs && c.Type == "bigint" && q != nil:
				sql = append(sql, defaultSQL(t.Name, name, q, call))
			}
		}
	}
	return sql
}

// defaultSQL gives a column a default; an identity column loses its sequence for that.
func defaultSQL(table, column string, q *Sequence, call string) string {
	if q != nil && q.Identity {
		return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s DROP IDENTITY, ALTER COLUMN %s SET DEFAULT %s", table, quote(column), quote(column), call)
	}
	return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s", table, quote(column), call)
}

// SameNumbers returns the other nodes whose TimeIDs have this node's number.
func SameNumbers(here *Summary, others []*Summary) []string {
	var same []string
	for _, s := range others {
		if here.IDNumber != nil && s.IDNumber != nil && *here.IDNumber == *s.IDNumber {
			same = append(same, s.Node)
		}
	}
	return same
}
