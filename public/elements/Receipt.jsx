// The receipt under an answer: its sources, what can be done about it, and one quiet line that opens into what the turn
// did, what it took and what the answer rests on.
//
// `props` is the turn's dictionary in the reader's language and what the server knows of the answer: {answer_id, thread_id,
// shown, labels, kept, comment, offers, larger, standing, attachments}; any part may be missing. What a turn says in words is
// public/turns.js; what outlives this element, which Chainlit makes anew at every turn, is public/receipts.js; passages
// are shown by public/passages.js, which also sends the clicks on the answer's marks here ("smallfirst:cite"). The looks
// are public/receipt.css.

import { useEffect, useId, useReducer, useRef, useState } from 'react'
import { ArrowUpRight, Check, Copy, Download, RotateCcw, TextSearch, ThumbsDown, ThumbsUp, Undo2 } from 'lucide-react'
import { useChatData } from '@chainlit/react-client'
import { Tooltip, TooltipContent, TooltipProvider, TooltipTrigger } from '@/components/ui/tooltip'

const { t, figures, passages, receipts, turns } = window.smallFirst
const { list } = turns
const COPIED_MS = 2000
const COMMENT_LENGTH = 500

/** Renders again when the page's words come, or are those of another language. */
function useWords() {
  const [, again] = useReducer((times) => times + 1, 0)
  useEffect(() => {
    window.addEventListener('smallfirst:words', again)
    return () => window.removeEventListener('smallfirst:words', again)
  }, [])
}

/** What a person has done with this receipt, and how to change it. */
function useKept(answer) {
  const [, again] = useReducer((times) => times + 1, 0)
  useEffect(() => receipts.listen(again), [])
  return [receipts.of(answer), (what) => receipts.change(answer, what)]
}

// --- sources ---------------------------------------------------------------------------------------------------------

function Sources({ citations, open }) {
  if (!citations.length) return null
  return (
    <ul className="sf-chips" aria-label={t('page.sources')} data-testid="receipt-sources">
      {citations.map((cited, index) => (
        <li key={index}>
          <button
            type="button"
            className="sf-chip"
            data-act={`source-${index}`}
            title={figures.place(cited)}
            onClick={(event) => open(index, event.currentTarget)}
          >
            <span className="sf-number">{cited.marker}</span>
            <span className="sf-document">{cited.source}</span>
            {figures.unit(cited.source, cited.page) && (
              <span className="sf-page">{figures.unit(cited.source, cited.page)}</span>
            )}
          </button>
        </li>
      ))}
    </ul>
  )
}

function Fold({ name, title, kept, change, children, ...more }) {
  const folds = kept.folds || {}
  return (
    <details
      className="sf-fold"
      open={Boolean(folds[name])}
      onToggle={({ currentTarget: { open } }) => {
        if (open !== Boolean(folds[name])) change({ folds: { ...folds, [name]: open } })
      }}
      {...more}
    >
      <summary data-act={name}>{title}</summary>
      {children}
    </details>
  )
}

/** What a model wrote and the answer does not say: nothing that was seen while it streamed is lost. */
function SetAside({ turn, kept, change }) {
  return turns.setAside(turn).map((aside, index) => (
    <Fold
      key={index}
      name={`aside-${index}`}
      title={aside.title}
      kept={kept}
      change={change}
      data-testid="receipt-rejected"
    >
      {/* Removed from the answer, and still to be read: a line through it would hinder that. */}
      <del>{aside.text}</del>
      {aside.writer && <p className="sf-quiet">{aside.writer}</p>}
    </Fold>
  ))
}

// --- the opened receipt ----------------------------------------------------------------------------------------------

function Section({ title, children }) {
  return (
    <section>
      <h4>{title}</h4>
      {children}
    </section>
  )
}

const colour = (leg) => `hsl(var(--chart-${{ slm: 2, llm: 3 }[leg] || 1}))`
const part = (share) => `${(100 * share).toFixed(2)}%`

function Waterfall({ turn }) {
  const rows = turns.waterfall(turn)
  if (!rows.length) return <p className="sf-quiet">{t('page.no_times')}</p>
  return (
    <ol className="sf-waterfall">
      {rows.map((row, index) =>
        row.heading ? (
          <li key={index} className="sf-leg">
            <span>
              <span className="sf-dot" style={{ background: colour(row.leg) }} aria-hidden="true" />
              {row.text}
            </span>
            <span className="sf-length">{row.length}</span>
          </li>
        ) : (
          <li key={index}>
            <span className={row.leg ? 'sf-step sf-inner' : 'sf-step'}>{row.text}</span>
            <span className="sf-track" aria-hidden="true">
              <span
                data-testid="receipt-bar"
                data-span={row.name}
                data-leg={row.leg}
                className={row.share === null ? 'sf-broken' : undefined}
                style={{
                  // Work of a moment must still be seen, also at the far end.
                  left: `min(${part(row.start)}, calc(100% - 2px))`,
                  width: part(row.share === null ? 1 - row.start : row.share),
                  color: colour(row.leg),
                }}
              />
            </span>
            <span className="sf-length">{row.length}</span>
          </li>
        ),
      )}
    </ol>
  )
}

function Signals({ rows }) {
  return (
    <table>
      <tbody>
        {rows.map(({ looked, seen }) => (
          <tr key={looked}>
            <th scope="row">{looked}</th>
            <td>{seen}</td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

function Verdict({ turn, kept, change }) {
  const verdict = turns.verdict(turn)
  if (!verdict) return null
  const { score, threshold, calibrated, seen, closer } = verdict
  return (
    <Section title={t(verdict.asked ? 'page.verdict' : 'page.verdict_unasked')}>
      <p>{verdict.outcome}</p>
      {score !== null && threshold !== null && (
        <div className="sf-scale">
          <span className="sf-track" aria-hidden="true">
            <span style={{ width: part(score), color: colour('slm') }} />
            <span className="sf-tick" style={{ left: part(threshold) }} />
          </span>
          <span>
            {t(calibrated ? 'page.sure' : 'page.sure_uncalibrated', {
              score: figures.percent(score),
              threshold: figures.percent(threshold),
            })}
          </span>
        </div>
      )}
      {seen.length > 0 && <Signals rows={seen} />}
      {closer.length > 0 && (
        <Fold name="closer" title={t('page.looked_closer', { count: closer.length })} kept={kept} change={change}>
          <Signals rows={closer} />
        </Fold>
      )}
    </Section>
  )
}

function Ledger({ turn }) {
  const ledgers = turns.ledgers(turn)
  if (!ledgers.length) return null
  return (
    <Section title={t('page.ledger')}>
      {ledgers.map((ledger) => (
        <div key={ledger.leg} className="sf-ledger" data-testid="receipt-ledger">
          {ledgers.length > 1 && <p className="sf-strong">{ledger.title}</p>}
          {ledger.share !== null && (
            <span className="sf-track" aria-hidden="true">
              <span className="sf-rest" style={{ width: part(ledger.share), color: colour(ledger.leg) }} />
              <span style={{ width: part(Math.min(ledger.passages, ledger.share)), color: colour(ledger.leg) }} />
            </span>
          )}
          <p>{ledger.told}</p>
          <p>{t('page.ledger_sent', { what: ledger.sent })}</p>
          {ledger.leftOut && <p>{t('page.ledger_left_out', { what: ledger.leftOut })}</p>}
        </div>
      ))}
    </Section>
  )
}

function Bill({ turn }) {
  const rows = turns.bill(turn).map(([looked, seen]) => ({ looked, seen }))
  return (
    <>
      {rows.length > 0 && (
        <Section title={t('page.bill')}>
          <Signals rows={rows} />
        </Section>
      )}
      {(turn.model || turns.left(turn)) && (
        <Section title={t('page.where')}>
          <p>
            {turns.left(turn)
              ? t('page.where_left', { host: turns.left(turn) })
              : t('page.where_here')}
          </p>
        </Section>
      )}
    </>
  )
}

function Notes({ notes }) {
  if (!notes.length) return null
  return (
    <Section title={t('page.notes')}>
      <ul>
        {notes.map((note, index) => (
          <li key={index}>{String(note)}</li>
        ))}
      </ul>
    </Section>
  )
}

function Line({ turn, kept, change }) {
  const body = useId()
  const open = Boolean(kept.open)
  return (
    <>
      <button
        type="button"
        className="sf-line"
        data-testid="receipt-toggle"
        data-act="line"
        aria-expanded={open}
        aria-controls={body}
        onClick={() => change({ open: !open })}
      >
        <span>{turns.summary(turn).join(' · ')}</span>
        <svg aria-hidden="true" width="10" height="10" viewBox="0 0 10 10">
          <path d="M1.5 3.5 5 7l3.5-3.5" fill="none" stroke="currentColor" strokeWidth="1.4" />
        </svg>
      </button>
      <div id={body} className="sf-body" data-testid="receipt-body" hidden={!open}>
        {open && (
          <>
            <Waterfall turn={turn} />
            <Verdict turn={turn} kept={kept} change={change} />
            <Ledger turn={turn} />
            <Bill turn={turn} />
            <Notes notes={list(turn.notes)} />
            {turn.thread_id && turn.answer_id && (
              <a
                className="sf-export"
                data-act="export"
                href={figures.address(`export/${turn.thread_id}/${turn.answer_id}.json`)}
                download
              >
                <Download aria-hidden="true" size={14} />
                {t('page.export_turn')}
              </a>
            )}
          </>
        )}
      </div>
    </>
  )
}

// --- the buttons -----------------------------------------------------------------------------------------------------

/** One button of the row: an icon alone has its name as a tooltip as well. */
function Tool({ act, icon: Icon, name, text, busy, pressed, onClick, ...more }) {
  const tool = (
    <button
      type="button"
      className="sf-tool"
      data-act={act}
      aria-label={text ? undefined : name}
      aria-disabled={busy || undefined}
      aria-pressed={pressed}
      onClick={(event) => !busy && onClick(event.currentTarget)}
      {...more}
    >
      <Icon aria-hidden="true" size={16} />
      {text && <span>{text}</span>}
    </button>
  )
  if (text) return tool
  return (
    <Tooltip>
      <TooltipTrigger asChild>{tool}</TooltipTrigger>
      <TooltipContent>{name}</TooltipContent>
    </Tooltip>
  )
}

/** Puts the answer on the clipboard, as text and as it looks, with its sources and without the receipt. */
async function copy(turn, root) {
  const shown = root.closest('.message-content').cloneNode(true)
  for (const ours of shown.querySelectorAll('.inline-custom')) ours.remove()
  for (const mark of shown.querySelectorAll('a[href^="#source-"]')) mark.replaceWith(`[${mark.textContent}]`)
  const text = turns.copied(turn, turn.answer || shown.textContent.trim())
  const places = document.createElement('div')
  for (const line of turns.copied(turn, '').split('\n')) {
    places.appendChild(document.createElement('p')).textContent = line
  }
  shown.append(places)
  if (navigator.clipboard && navigator.clipboard.write) {
    const parts = { 'text/plain': text, 'text/html': shown.innerHTML }
    const blobs = Object.entries(parts).map(([type, value]) => [type, new Blob([value], { type })])
    return navigator.clipboard.write([new ClipboardItem(Object.fromEntries(blobs))])
  }
  // Over plain HTTP from another machine the page has no clipboard.
  const box = document.createElement('textarea')
  box.value = text
  document.body.append(box)
  box.select()
  const done = document.execCommand('copy')
  box.remove()
  if (!done) throw new Error()
}

function CopyTool({ turn, root, fail }) {
  const [copied, setCopied] = useState(false)
  useEffect(() => {
    const timer = copied && setTimeout(() => setCopied(false), COPIED_MS)
    return () => clearTimeout(timer)
  }, [copied])
  return (
    <Tool
      act="copy"
      data-testid="receipt-copy"
      icon={copied ? Check : Copy}
      name={t(copied ? 'page.copied' : 'page.copy')}
      onClick={() =>
        copy(turn, root.current).then(
          () => setCopied(true),
          () => fail(t('page.not_copied')),
        )
      }
    />
  )
}

function Comment({ turn, kept, change, press }) {
  // What was kept is shown at once; the receipt that tells it may come after the word that it was.
  const comment = kept.said ?? turn.comment ?? ''
  const text = kept.comment ?? comment
  if (!kept.asking) {
    if (!comment) return null
    return (
      <button type="button" className="sf-said" data-act="said" onClick={() => change({ asking: true })}>
        {t('page.comment_kept', { comment })}
      </button>
    )
  }
  const done = (more) => change({ asking: false, comment: undefined, ...more })
  return (
    <span className="sf-comment">
      <input
        type="text"
        data-act="comment"
        data-testid="receipt-comment"
        aria-label={t('page.comment')}
        placeholder={t('page.comment')}
        maxLength={COMMENT_LENGTH}
        value={text}
        onChange={(event) => change({ comment: event.target.value })}
        onKeyDown={(event) => {
          if (event.nativeEvent.isComposing) return
          const said = text.trim()
          if (event.key === 'Enter') press('comment', { comment: said }).then((well) => well && done({ said }))
          if (event.key === 'Escape') done()
        }}
      />
      <span className="sf-quiet">{t('page.comment_stays')}</span>
    </span>
  )
}

function Tools({ turn, kept, change, root, press, running, showFound }) {
  const busy = Boolean(kept.pending)
  // What was pressed is shown at once.
  const pressed = ['good', 'bad'].includes(kept.pending) ? kept.pending : null
  const standing = pressed ? (pressed === turn.kept ? null : pressed) : turn.kept
  const larger = turn.larger || {}
  const host = larger.leaves ? larger.where : null
  const thumb = (name) =>
    press(name).then(
      (done) => done && change({ asking: turn.kept !== name, comment: undefined, said: undefined }),
    )
  const offered = {
    retry: { icon: RotateCcw, text: t('page.retry') },
    ask_larger: {
      icon: ArrowUpRight,
      // words: page.ask_larger page.ask_larger_sends page.ask_larger_anyway page.ask_larger_anyway_sends
      text: t(`page.ask_larger${turn.refused ? '_anyway' : ''}${host ? '_sends' : ''}`, { host }),
      title: larger.model ? t('page.ask_larger_title', { model: larger.model }) : undefined,
    },
    keep_short: { icon: Undo2, text: t('page.keep_short'), title: t('page.keep_short_title') },
  }
  return (
    <div className="sf-tools" role="group" aria-label={t('page.tools')} data-testid="receipt-tools">
      {turn.labels && Array.isArray(turn.hits) && (
        <>
          {[
            ['good', ThumbsUp, t('page.good')],
            ['bad', ThumbsDown, t('page.bad')],
          ].map(([name, icon, told]) => (
            <Tool
              key={name}
              act={name}
              icon={icon}
              name={told}
              pressed={standing === name}
              busy={kept.pending === name}
              onClick={() => thumb(name)}
            />
          ))}
        </>
      )}
      <CopyTool turn={turn} root={root} fail={(failed) => change({ failed })} />
      {list(turn.offers)
        .filter((name) => name in offered)
        .map((name) => (
          <Tool key={name} act={name} busy={busy || running} {...offered[name]} onClick={() => press(name)} />
        ))}
      {list(turn.hits).length > 0 && (
        <Tool
          act="found"
          data-testid="receipt-passages"
          icon={TextSearch}
          text={t('page.show_found')}
          onClick={showFound}
        />
      )}
      {standing && <Comment turn={turn} kept={kept} change={change} press={press} />}
    </div>
  )
}

// --- all of it -------------------------------------------------------------------------------------------------------

export default function Receipt() {
  useWords()
  const own = useId()
  const turn = props || {}
  const answer = turn.answer_id || own
  const [kept, change] = useKept(answer)
  const { loading } = useChatData()
  const root = useRef(null)
  const citations = list(turn.citations)
  const query = turn.query && turn.query !== turn.question ? String(turn.query) : null

  const view = {
    answer,
    thread: turn.thread_id,
    uploads: list(turn.attachments),
    hits: list(turn.hits),
    citations,
    query: turn.query || turn.question,
  }
  const open = (index, opener) => passages.show({ ...view, kind: 'cited', index, opener })

  useEffect(() => receipts.refocus(answer, root.current))
  useEffect(() => {
    const node = root.current
    const hear = ({ detail: { marker, opener } }) => {
      const index = citations.findIndex((cited) => String(cited.marker) === marker)
      if (index >= 0) open(index, opener)
    }
    node.addEventListener('smallfirst:cite', hear)
    return () => node.removeEventListener('smallfirst:cite', hear)
  }, [])

  /** True once the server has done it; what went wrong is told under the buttons. */
  async function press(name, more) {
    // Pressed twice it is meant once; anything else is done after what is under way.
    if (receipts.of(answer).pending === name) return false
    while (receipts.of(answer).pending) await receipts.idle(answer)
    change({ pending: name, failed: null })
    try {
      const said = await callAction({ name, payload: { answer, ...more } })
      const failure = said ? said.response : t('page.not_connected')
      change({ pending: null, failed: typeof failure === 'string' && failure ? failure : null })
      return !(typeof failure === 'string' && failure)
    } catch (error) {
      change({ pending: null, failed: error.detail || t('page.not_done') })
      return false
    }
  }

  return (
    <TooltipProvider delayDuration={300}>
      <div
        ref={root}
        className="sf-receipt"
        data-testid="receipt"
        data-answer={answer}
        lang={window.smallFirst.language}
      >
        <Sources citations={citations} open={open} />
        {query && (
          <p className="sf-quiet" data-testid="receipt-query">
            {t('page.searched_for', { query })}
          </p>
        )}
        <SetAside turn={turn} kept={kept} change={change} />
        {turn.shown !== false && <Line turn={turn} kept={kept} change={change} />}
        <Tools
          turn={turn}
          kept={kept}
          change={change}
          root={root}
          press={press}
          running={loading}
          showFound={(opener) => passages.show({ ...view, kind: 'found', index: null, opener })}
        />
        {kept.failed && (
          <p className="sf-failed" role="alert">
            {kept.failed}
          </p>
        )}
      </div>
    </TooltipProvider>
  )
}
