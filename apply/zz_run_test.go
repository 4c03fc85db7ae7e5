package apply

import (
	"testing"

	"github.com/pgbridge/pgbridge/integration/pgtest"
)

type dbq struct {
	t  testing.TB
	db *pgtest.Database
}

func (d dbq) Query(sql string, args ...any) []string { return d.db.Query(d.t, sql, args...) }

func TestZZTypes(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		all := builtInSamples(s.Major)
		p := newPair2(t, s, typesSchema(all), dummyTypes+typesSchema(all))
		requireAllTypes(t, dbq{t, p.from}, s.Major)
		for _, ph := range typePhases(all) {
			execLong(t, p.from.DSN, ph.sql); p.ship(nil, false); p.await()
			requireExact(t, []string{p.from.DSN, p.to.DSN}, "dummy")
			t.Log(ph.name, p.status())
		}
	})
}

func TestZZTypesLarge(t *testing.T) {
	pgtest.Each(t, func(t *testing.T, s *pgtest.Server) {
		all := builtInSamples(s.Major)
		p := newPair2(t, s, typesSchema(all), dummyTypes+typesSchema(all))
		for _, ph := range typePhases(all) {
			execLong(t, p.from.DSN, ph.sql)
			p.ship(nil, true)
			p.await()
			requireExact(t, []string{p.from.DSN, p.to.DSN}, "dummy")
			t.Log(ph.name, p.status())
		}
	})
}
