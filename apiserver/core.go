package apiserver

import (
	"context"
	"log/slog"
	"time"

	"github.com/clustermesh/clustermesh/apiserver/export"
	"github.com/clustermesh/clustermesh/apiserver/identity"
	"github.com/clustermesh/clustermesh/apiserver/source"
)

// retryInterval is how often what waits for a free identity is retried when
// nothing else happens.
const retryInterval = time.Minute

// core owns the exporter: one goroutine takes what the source says, and the
// publishers of each new life of the store.
type core struct {
	config   Config
	exporter *export.Exporter // nil until it is known what the source reads
	table    *identity.Table
	journal  *journal
	status   *status
	events   *events // nil for none
	log      *slog.Logger
	batches  chan source.Batch
	lives    chan *life
	visits   chan chan<- struct{} // of meet
	begun    chan struct{}        // closed when reads is known
	reads    source.Reads         // not before begun is closed

	synced   bool
	life     *life
	problems map[string]bool // the source's, as logged
	agents   *agents
}

// sink hands a batch to the core and returns when it was taken.
func (c *core) sink(ctx context.Context) source.Sink {
	return func(b source.Batch) {
		select {
		case c.batches <- b:
		case <-ctx.Done():
		}
	}
}

func (c *core) run(ctx context.Context) error {
	ticker := time.NewTicker(retryInterval)
	defer ticker.Stop()
	defer c.journal.close() //nolint:errcheck // every append was synced
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-c.batches:
			c.take(b)
		case l := <-c.lives:
			c.attach(l)
		case met := <-c.visits:
			close(met)
		case <-ticker.C:
			c.apply(nil)
		}
	}
}

// meet returns when everything that the core was handed before has been exported
// to the life.
func (c *core) meet(ctx context.Context) error {
	met := make(chan struct{})
	select {
	case c.visits <- met:
		<-met
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *core) take(b source.Batch) {
	c.noteProblems(b.Problems)
	if b.Reads != nil && c.exporter == nil {
		c.begin(*b.Reads)
	}
	c.apply(b.Changes)
	if b.Synced && !c.synced {
		c.synced = true
		c.log.Info("source is synced", "n", len(b.Changes))
		c.markSynced()
	}
}

// begin decides how objects are exported, once the source knows which kinds it
// reads.
func (c *core) begin(r source.Reads) {
	c.exporter = export.New(c.config.export(r), c.table)
	c.reads = r
	c.status.setIdentitySource(r.Cilium)
	c.log.Info("exporting begins", "identity_source", identitySource(r.Cilium), "service_exports", r.ServiceExports != "")
	close(c.begun)
}

// noteProblems logs what is new and counts it.
func (c *core) noteProblems(problems []source.Problem) {
	now := map[string]bool{}
	for _, p := range problems {
		now[p.String()] = true
		if !c.problems[p.String()] {
			c.log.Error("source has a problem", "name", p.Origin, "err", p.Message)
			c.status.sourceFailed()
		}
	}
	c.problems = now
	c.status.setSource(problems)
}

// apply exports changes. The numbers of identities are on disk before anybody
// can read them; if the disk fails, publishing goes on without.
func (c *core) apply(changes []export.Change) {
	if c.exporter == nil {
		return
	}
	c.table.Advance(time.Now().Unix())
	records := c.exporter.Apply(changes)
	if err := c.journal.append(c.table.TakeChanges(), c.table); err != nil {
		c.log.Error("cannot keep identities, they may differ after a restart; check the data directory", "err", err)
		c.status.journalFailed()
	}
	c.life.publish(records)
	c.events.note(c.exporter.TakeServices(), c.synced)
	c.agents.follow(records)
	c.status.setExport(c.exporter, c.table.Stats())
}

// attach fills the empty store of a new life, which comes after begin.
func (c *core) attach(l *life) {
	c.life = l
	l.publish(c.exporter.All())
	c.markSynced()
}

func (c *core) markSynced() {
	if !c.synced {
		return
	}
	c.status.setSynced()
	c.life.synced()
}
