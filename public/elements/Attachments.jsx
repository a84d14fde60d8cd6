// Under the message about an upload: what became of each file, and a way to remove it.
//
// `props.documents` is what was attached then: [{number, source, told}]. What is attached now is kept by
// public/documents.js, in `window.smallFirstDocuments`; it also takes what is said here to the server. The looks are
// public/receipt.css.

import { useEffect, useReducer, useRef, useState } from 'react'

const { t } = window.smallFirst
const list = (value) => (Array.isArray(value) ? value : [])

/** Renders again when the list of what is attached changes, or the page's words; null while nobody has said. */
function useAttached() {
  const [, again] = useReducer((times) => times + 1, 0)
  useEffect(() => {
    again()
    const events = ['smallfirst:documents', 'smallfirst:words']
    for (const name of events) window.addEventListener(name, again)
    return () => events.forEach((name) => window.removeEventListener(name, again))
  }, [])
  return window.smallFirstDocuments || null
}

function Document({ shown, attached }) {
  const [asked, setAsked] = useState(false)
  const outcome = useRef(null)
  const here = attached === null || attached.some((one) => one.number === shown.number)
  const replaced = !here && attached.some((one) => one.source === shown.source)
  useEffect(() => {
    // The button that had the focus is gone.
    if (!here && asked && outcome.current) outcome.current.focus()
  }, [here, asked])
  return (
    <li data-testid="attachment">
      <span className={here ? 'sf-attached' : 'sf-attached sf-gone'}>
        <span className="sf-document">{shown.source}</span>
        <span className="sf-quiet">{shown.told}</span>
      </span>
      {here ? (
        <button
          type="button"
          className="sf-remove"
          aria-label={t('page.remove_document', { name: shown.source })}
          aria-disabled={asked}
          onClick={() => {
            setAsked(true)
            window.postMessage({ smallfirst: 'remove', number: shown.number }, window.location.origin)
          }}
        >
          {t('page.remove')}
        </button>
      ) : (
        <span ref={outcome} tabIndex={-1} className="sf-quiet">
          {t(replaced ? 'page.replaced' : 'page.removed')}
        </span>
      )}
    </li>
  )
}

export default function Attachments() {
  const attached = useAttached()
  return (
    <ul
      className="sf-attachments"
      data-testid="attachments"
      aria-label={t('page.documents_of_message')}
      lang={window.smallFirst.language}
    >
      {list(props.documents).map((shown) => (
        <Document key={shown.number} shown={shown} attached={attached} />
      ))}
    </ul>
  )
}
