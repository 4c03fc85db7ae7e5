package apply

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestNoTimeOutEndsASession, whatever the defaults of the database are (R3).
func TestNoTimeOutEndsASession(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		db := s.NewDatabase(t)
		names := db.Query(t, `SELECT name FROM pg_settings WHERE name ~ '^(idle|statement|lock|transaction)_.*timeout$' AND context = 'user' ORDER BY 1`)
		if len(names) < 4 {
			t.Fatalf("time-outs %q", names)
		}
		for _, name := range names {
			db.Exec(t, `DO $$BEGIN EXECUTE format('ALTER DATABASE %I SET `+name+` = 60000', current_database()); END$$`)
		}
		conn, err := connect(t.Context(), db.DSN, "test", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(t.Context())
		for _, name := range names {
			var v string
			if err := conn.QueryRow(t.Context(), `SELECT setting FROM pg_settings WHERE name = $1`, name).Scan(&v); err != nil || v != "0" {
				t.Errorf("%s is %q, %v", name, v, err)
			}
		}
	})
}
