// The receipt under an answer: what a turn did, where its time went, and what the answer rests on.
//
// `props` is the Turn's dictionary, as in the message's metadata. Any part of it may be missing (a turn can be stopped,
// or fail, at any point). It knows the names of the cascade's spans and nothing of how they come about; it asks nothing
// of the server. Chainlit's style sheet is prebuilt, so widths and colours stand here, in the theme's variables.

import { useId, useState } from 'react'

const SPANS = {
  rewrite: 'rewriting the question',
  retrieve: 'searching the documents',
  load: 'starting the model',
  cite: 'finding the sources',
  prompt: 'preparing the prompt',
  queue: 'waiting for the model',
  request: 'request sent',
  first_token: 'first token',
  completion: 'completion',
  judge: 'checking the answer',
}

// These two enclose others: they become headings, not bars.
const LEG_SPANS = ['draft', 'escalate']
const LEGS = { slm: 'Small model', llm: 'Larger model' }

const hsl = (variable, alpha) => `hsl(var(--${variable})${alpha === undefined ? '' : ` / ${alpha}`})`
const COLOURS = { slm: hsl('chart-2'), llm: hsl('chart-3') }
const QUIET = { color: hsl('muted-foreground') }
const SMALL = { fontSize: '0.75rem', lineHeight: '1.15rem' }
const FIGURES = { fontVariantNumeric: 'tabular-nums', whiteSpace: 'nowrap' }
const WRAP = { overflowWrap: 'anywhere', whiteSpace: 'pre-wrap' }

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value)
const list = (value) => (Array.isArray(value) ? value.filter((item) => item !== null && item !== undefined) : [])

/** Milliseconds in the unit a person would use. */
function time(ms) {
  if (!isNumber(ms)) return '–'
  if (ms < 1) return '<1 ms'
  if (ms < 100) return `${Math.round(ms)} ms`
  if (ms < 59950) return `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`
  const seconds = Math.round(ms / 1000)
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
}

const figure = (value) => {
  if (typeof value === 'boolean') return value ? 'yes' : 'no'
  if (!isNumber(value)) return value === null || value === undefined ? '–' : String(value)
  return Number.isInteger(value) ? value.toLocaleString('en-US') : value.toFixed(2)
}

// The turn's dictionary has numbers only; a person calls them by what the document is made of.
const unit = (source) => (/\.pptm?x?$/i.test(source) ? 'slide' : /\.xlsm?x?$/i.test(source) ? 'sheet' : 'page')
const place = ({ source, page, heading }) =>
  [source, isNumber(page) ? `${unit(source)} ${page}` : null, list(heading).join(' › ')].filter(Boolean).join(' · ')

function summary(turn) {
  const trace = turn.trace || {}
  const verdict = turn.verdict || null
  const reason = verdict && verdict.reason
  const lastDraft = list(turn.drafts).at(-1) || {}
  const parts = [turn.model || lastDraft.model || (turn.stopped ? 'stopped' : 'no model answered')]
  if (turn.escalated) parts.push(reason ? `escalated: ${reason}` : 'escalated')
  if (isNumber(trace.ttft_ms)) parts.push(`first token ${time(trace.ttft_ms)}`)
  if (isNumber(trace.total_ms) && trace.total_ms > 0) parts.push(`total ${time(trace.total_ms)}`)
  if (!turn.escalated && turn.model && verdict && isNumber(verdict.score)) parts.push(`confidence ${figure(verdict.score)}`)
  if (list(trace.spans).some((span) => !isNumber(span.duration_ms))) parts.push('stopped')
  return parts.join(' · ')
}

/** Rows of the waterfall: spans in the order they began, an enclosing one before what lies in it. */
function ordered(trace) {
  return list(trace && trace.spans)
    .filter((span) => isNumber(span.start_ms))
    .map((span, index) => ({ ...span, index, encloses: LEG_SPANS.includes(span.name) }))
    .sort((a, b) => a.start_ms - b.start_ms || b.encloses - a.encloses || a.index - b.index)
}

function Section({ title, children }) {
  return (
    <section style={{ marginTop: '0.9rem' }}>
      <h4 style={{ ...SMALL, margin: '0 0 0.3rem', fontWeight: 600 }}>{title}</h4>
      {children}
    </section>
  )
}

function Folded({ title, children, testid }) {
  return (
    <details style={{ marginTop: '0.45rem' }} data-testid={testid}>
      <summary style={{ ...SMALL, ...QUIET, cursor: 'pointer', padding: '0.15rem 0' }}>{title}</summary>
      {children}
    </details>
  )
}

function Waterfall({ turn }) {
  const rows = ordered(turn.trace)
  if (!rows.length) return <p style={QUIET}>No times were recorded.</p>
  const ends = rows.map((span) => span.start_ms + (isNumber(span.duration_ms) ? span.duration_ms : 0))
  const total = Math.max(isNumber(turn.trace.total_ms) ? turn.trace.total_ms : 0, ...ends, 0.001)
  const model = (leg) => (list(turn.drafts).find((draft) => draft.leg === leg) || {}).model
  const percent = (ms) => `${Math.min(100, Math.max(0, (100 * ms) / total)).toFixed(2)}%`
  const row = {
    display: 'grid',
    gridTemplateColumns: 'minmax(5.2rem, 11rem) minmax(4rem, 1fr) 3.4rem',
    columnGap: '0.5rem',
    alignItems: 'center',
    padding: '0.1rem 0',
  }
  return (
    <ol style={{ listStyle: 'none', margin: 0, padding: 0 }}>
      {rows.map((span) => {
        const closed = isNumber(span.duration_ms)
        const length = closed ? time(span.duration_ms) : 'stopped'
        const named = span.leg ? LEGS[span.leg] || span.leg : null
        if (span.encloses) {
          const name = model(span.leg) || (span.leg === 'slm' ? null : turn.model)
          return (
            <li key={span.index} style={{ ...row, gridTemplateColumns: '1fr 3.4rem', paddingTop: '0.45rem' }}>
              <span style={{ fontWeight: 600, overflowWrap: 'anywhere' }}>
                <span
                  aria-hidden="true"
                  style={{
                    display: 'inline-block',
                    width: '0.55rem',
                    height: '0.55rem',
                    borderRadius: '50%',
                    marginRight: '0.4rem',
                    background: COLOURS[span.leg] || hsl('chart-1'),
                  }}
                />
                {[named || 'Model', name].filter(Boolean).join(': ')}
              </span>
              <span style={{ ...FIGURES, ...QUIET, textAlign: 'right' }}>{length}</span>
            </li>
          )
        }
        const colour = COLOURS[span.leg] || hsl('chart-1')
        return (
          <li key={span.index} style={row} title={`${span.name}: from ${time(span.start_ms)} on, ${length}`}>
            <span style={{ ...QUIET, paddingLeft: span.leg ? '0.6rem' : 0 }}>{SPANS[span.name] || span.name}</span>
            <span
              aria-hidden="true"
              style={{ position: 'relative', height: '0.5rem', borderRadius: '2px', background: hsl('muted', 0.6) }}
            >
              <span
                data-testid="receipt-bar"
                data-span={span.name}
                data-leg={span.leg || ''}
                style={{
                  position: 'absolute',
                  top: 0,
                  bottom: 0,
                  // Work of a moment must still be seen, also at the far end.
                  left: `min(${percent(span.start_ms)}, calc(100% - 2px))`,
                  width: percent(closed ? span.duration_ms : total - span.start_ms),
                  minWidth: '2px',
                  borderRadius: '2px',
                  background: closed
                    ? colour
                    : `repeating-linear-gradient(135deg, ${colour} 0 3px, transparent 3px 6px)`,
                }}
              />
            </span>
            <span style={{ ...FIGURES, textAlign: 'right' }}>{length}</span>
          </li>
        )
      })}
    </ol>
  )
}

function Judgement({ verdict, escalated, asked }) {
  const { score, threshold, accepted, reason } = verdict
  if (!asked) {
    return (
      <Section title="Why was no model asked?">
        <p style={{ margin: 0 }}>
          The documents seem silent: {reason}, at least {Math.round(100 * threshold)}% is asked for.
        </p>
      </Section>
    )
  }
  const signals = Object.entries(verdict.signals || {})
  const cell = { padding: '0.1rem 0.9rem 0.1rem 0', textAlign: 'left', fontWeight: 400, verticalAlign: 'top' }
  const outcome = accepted
    ? 'The small model’s answer was accepted.'
    : escalated
      ? 'The small model’s answer was not accepted, so the larger model was asked.'
      : 'The small model’s answer was not accepted.'
  return (
    <Section title="Was the first answer good enough?">
      <p style={{ margin: 0 }}>
        {outcome}
        {reason ? ` Reason: ${reason}.`.replace(/\.\.$/, '.') : ''}
        {isNumber(score) && isNumber(threshold)
          ? ` Confidence ${figure(score)}; at least ${figure(threshold)} is needed.`
          : ''}
      </p>
      {signals.length > 0 && (
        <table style={{ borderCollapse: 'collapse', marginTop: '0.35rem' }} aria-label="Signals of the confidence">
          <tbody>
            {signals.map(([name, value]) => (
              <tr key={name}>
                <th scope="row" style={{ ...cell, ...QUIET }}>
                  {name.replaceAll('_', ' ')}
                </th>
                <td style={{ ...cell, ...WRAP, fontVariantNumeric: 'tabular-nums' }}>
                  {typeof value === 'object' && value !== null ? JSON.stringify(value) : figure(value)}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </Section>
  )
}

function Passage({ lead, passage, text }) {
  return (
    <li style={{ margin: '0 0 0.5rem' }}>
      <span style={{ overflowWrap: 'anywhere' }}>
        {lead ? <span style={{ fontWeight: 600 }}>{lead} </span> : null}
        {place(passage)}
      </span>
      {text ? (
        <blockquote
          style={{
            ...QUIET,
            ...WRAP,
            margin: '0.15rem 0 0',
            padding: '0 0 0 0.6rem',
            borderLeft: `2px solid ${hsl('border')}`,
          }}
        >
          {text}
        </blockquote>
      ) : null}
    </li>
  )
}

function Sources({ citations, hits }) {
  const cited = (hit) => citations.some((c) => c.source === hit.source && c.start < hit.end && hit.start < c.end)
  const others = hits.filter((hit) => !cited(hit))
  const plain = { listStyle: 'none', margin: 0, padding: 0 }
  const marker = (value) => (/^\d+$/.test(String(value)) ? `[${value}]` : value)
  return (
    <Section title="Sources">
      {citations.length > 0 ? (
        <ul style={plain}>
          {citations.map((citation, index) => (
            <Passage key={index} lead={marker(citation.marker)} passage={citation} text={citation.quote} />
          ))}
        </ul>
      ) : (
        <p style={{ ...QUIET, margin: 0 }}>
          {hits.length ? 'The answer cites none of the passages found.' : 'No passage was found.'}
        </p>
      )}
      {others.length > 0 && (
        <Folded
          testid="receipt-passages"
          title={
            citations.length > 0
              ? `${others.length} other ${others.length === 1 ? 'passage' : 'passages'} found`
              : `${others.length} ${others.length === 1 ? 'passage' : 'passages'} found`
          }
        >
          <ul style={{ ...plain, marginTop: '0.3rem' }}>
            {others.map((hit, index) => (
              <Passage
                key={index}
                passage={{ ...hit, heading: [hit.heading, isNumber(hit.score) && `score ${figure(hit.score)}`].filter(Boolean).join(' · ') }}
                text={hit.text}
              />
            ))}
          </ul>
        </Folded>
      )}
    </Section>
  )
}

function Drafts({ drafts }) {
  const counted = drafts.filter((draft) => draft.usage && isNumber(draft.usage.output_tokens))
  if (!counted.length) return null
  return (
    <Section title="Tokens">
      {counted.map((draft, index) => (
        <p key={index} style={{ margin: 0 }}>
          <span style={QUIET}>{draft.model || LEGS[draft.leg] || draft.leg}: </span>
          {isNumber(draft.usage.input_tokens) ? `${figure(draft.usage.input_tokens)} read, ` : ''}
          {figure(draft.usage.output_tokens)} written
          {draft.finish_reason === 'length' ? ', cut at its limit' : ''}
        </p>
      ))}
    </Section>
  )
}

const REFUSED = 'it says that this is not in the documents'
const sentence = (text) => String(text).replace(/([^.!?…])$/, '$1.')

/** Why a draft is not the answer. The verdict is of the small model's; it may have accepted a refusal as honest. */
function why(turn, draft) {
  const verdict = turn.verdict || {}
  const judged = draft.leg === 'slm' || !list(turn.drafts).some((other) => other.leg === 'slm')
  return judged && !verdict.accepted && verdict.reason ? verdict.reason : REFUSED
}

/** What a model wrote and the answer does not say: nothing that was seen while it streamed is lost. */
function SetAside({ turn, drafts }) {
  const aside = drafts.filter((draft) => draft.text && (turn.refused || (turn.escalated && draft.leg === 'slm')))
  return aside.map((draft, index) => {
    const words = String(draft.text).trim().split(/\s+/).length
    const stopped = draft.finish_reason === null ? `stopped after ${words} ${words === 1 ? 'word' : 'words'}` : null
    const writer = aside.length > 1 && LEGS[draft.leg] ? LEGS[draft.leg].toLowerCase() : 'model'
    const title = turn.refused ? `What the ${writer} wrote, not shown as the answer` : 'The small model’s draft, set aside'
    return (
      <Folded key={index} testid="receipt-rejected" title={sentence(`${title}: ${why(turn, draft)}`)}>
        <div style={{ margin: '0.2rem 0 0.5rem', padding: '0 0 0 0.7rem', borderLeft: `2px solid ${hsl('border')}` }}>
          {/* Removed from the answer, and still to be read: a line through it would hinder that. */}
          <del style={{ ...WRAP, ...QUIET, display: 'block', fontSize: '0.8125rem', textDecoration: 'none' }}>
            {draft.text}
          </del>
          <span style={{ ...QUIET, overflowWrap: 'anywhere' }}>
            {[draft.model, stopped].filter(Boolean).join(', ')}
          </span>
        </div>
      </Folded>
    )
  })
}

export default function Receipt() {
  const [open, setOpen] = useState(false)
  const body = useId()
  const turn = props || {}
  const drafts = list(turn.drafts)
  const notes = list(turn.notes)
  const query = turn.query && turn.query !== turn.question ? String(turn.query) : null
  return (
    <div style={{ ...SMALL, maxWidth: '100%', minWidth: 0 }} data-testid="receipt">
      {query ? (
        <p data-testid="receipt-query" style={{ ...QUIET, margin: 0, overflowWrap: 'anywhere' }}>
          Searched for: {query}
        </p>
      ) : null}
      <SetAside turn={turn} drafts={drafts} />
      <button
        type="button"
        data-testid="receipt-toggle"
        aria-expanded={open}
        aria-controls={body}
        onClick={() => setOpen(!open)}
        style={{
          ...SMALL,
          ...QUIET,
          display: 'inline-flex',
          alignItems: 'baseline',
          gap: '0.35rem',
          maxWidth: '100%',
          minHeight: '1.5rem',
          padding: '0.15rem 0.25rem',
          marginLeft: '-0.25rem',
          borderRadius: '0.35rem',
          textAlign: 'left',
        }}
      >
        <span style={{ overflowWrap: 'anywhere', fontVariantNumeric: 'tabular-nums' }}>{summary(turn)}</span>
        <svg
          aria-hidden="true"
          width="10"
          height="10"
          viewBox="0 0 10 10"
          style={{ flex: 'none', transform: open ? 'rotate(180deg)' : 'none' }}
        >
          <path d="M1.5 3.5 5 7l3.5-3.5" fill="none" stroke="currentColor" strokeWidth="1.4" />
        </svg>
      </button>
      <div
        id={body}
        data-testid="receipt-body"
        hidden={!open}
        style={{
          marginTop: '0.3rem',
          padding: '0.6rem 0.75rem 0.8rem',
          border: `1px solid ${hsl('border')}`,
          borderRadius: '0.6rem',
          background: hsl('card'),
          color: hsl('card-foreground'),
        }}
      >
        {open && (
          <>
            <Waterfall turn={turn} />
            {turn.verdict ? <Judgement verdict={turn.verdict} escalated={Boolean(turn.escalated)} asked={list(turn.drafts).length > 0} /> : null}
            <Sources citations={list(turn.citations)} hits={list(turn.hits)} />
            <Drafts drafts={drafts} />
            {notes.length > 0 && (
              <Section title="Notes">
                <ul style={{ margin: 0, paddingLeft: '1.1rem', listStyle: 'disc' }}>
                  {notes.map((note, index) => (
                    <li key={index} style={{ overflowWrap: 'anywhere' }}>
                      {String(note)}
                    </li>
                  ))}
                </ul>
              </Section>
            )}
          </>
        )}
      </div>
    </div>
  )
}
